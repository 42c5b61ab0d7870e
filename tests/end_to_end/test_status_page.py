"""The status page in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.browser import CONTRAST, EVIL, Browser, browsing, needs_browser
from tests.support.daemon import Daemon, eventually, running
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "token").write_text("s3cret")
    with running(folder, task.calibration, serve={"port": 0, "token_file": str(folder / "token")}) as daemon:
        daemon.put_live(task.first, EVIL)
        yield daemon


@pytest.fixture
def browser(daemon: Daemon) -> Iterator[Browser]:
    with browsing() as browser:
        browser.open(daemon.status()["address"] + "/")
        yield browser


@needs_browser
def test_it_shows_what_is_live_and_runs_nothing_of_a_file_name(browser: Browser) -> None:
    text = browser.evaluate("document.body.innerText")
    for expected in ("ready", "digits", "serving", "cifar_resnet20", EVIL, "COMMITTED", "Last updates"):
        assert expected in text
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.querySelectorAll('rect.bar').length") == 20  # the layers of a ResNet-20
    assert browser.evaluate("[...document.querySelectorAll('svg')].every((s) => s.getAttribute('aria-label'))")
    assert browser.complaints == []


@needs_browser
def test_it_is_legible_by_day_and_by_night(browser: Browser, tmp_path: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        seen.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        contrast = (
            "(() => {" + CONTRAST + "return Math.min(...[...document.querySelectorAll('body *')].map(contrast)); })()"
        )
        assert browser.evaluate(contrast) >= 4.5
        browser.screenshot(Path(os.environ.get("EDGED_SCREENSHOTS", tmp_path), f"{scheme}.png"))
    assert seen[0] != seen[1]
    # On a phone nothing but the table, which says so, is wider than the screen.
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360


@needs_browser
def test_drop_and_roll_back_with_the_token(browser: Browser, daemon: Daemon, task: Task, tmp_path: Path) -> None:
    browser.evaluate("document.querySelector('main').dataset.old = 1")
    browser.evaluate("document.querySelector('button[data-post]').click()")
    browser.until("document.getElementById('message').textContent.includes('wrong or missing token')")
    browser.until("!document.querySelector('main').dataset.old")  # it is renewed, with the form, after each action

    file = tmp_path / "from the page.pt"
    shutil.copy(task.second, file)
    browser.evaluate("document.getElementById('token').value = 's3cret'")
    browser.choose_file("form.drop input", file)
    browser.evaluate("document.querySelector('form.drop').requestSubmit()")
    browser.until("document.getElementById('message').textContent.includes('is in the drop folder of digits')")
    update = daemon.update_of(file.name)
    assert (update["state"], update["generation"]) == ("COMMITTED", 2)
    browser.until("document.querySelector('main').innerText.includes('from the page.pt')")  # by itself, in time

    browser.evaluate("document.querySelector('button[data-post]').click()")
    browser.until("document.getElementById('message').textContent.includes('generation 1 is live again')")
    assert daemon.generation() == 1
    assert not [text for text in browser.complaints if "403" not in text]


def test_the_page_is_complete_without_scripts_and_asks_nothing_of_others(daemon: Daemon) -> None:
    with daemon.tcp() as client:
        answer = client.get("/")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert EVIL not in answer.text
        assert client.get("/static/status.css").headers["content-type"].startswith("text/css")
        assert client.get("/static/status.js").status_code == 200
        for target in ("/static/none", "/static/..%2fpage_routes.py"):
            assert client.get(target).status_code == 404


def test_the_drop_route_needs_the_token_and_a_name(daemon: Daemon) -> None:
    def post(target: str, **options: object) -> httpx.Response:
        headers = {"Authorization": "Bearer s3cret"}
        with daemon.tcp() as client:
            return client.post(f"/edged/v1/models/{target}", **{"headers": headers, "content": b"x", **options})  # type: ignore[arg-type]  # as httpx takes them

    assert post("digits/drop?name=a.pt", headers={}).status_code == 403
    assert post("cats/drop?name=a.pt").status_code == 404
    for name in ("", "..%2Fa.pt", ".hidden"):
        assert post(f"digits/drop?name={name}").status_code == 404
    answer = post("digits/drop?name=empty.pt", content=b"")
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint")
    assert post("digits/drop?name=bad.pt", content=b"no checkpoint").status_code == 202
    assert daemon.update_of("bad.pt")["state"] == "REJECTED"
    folder = daemon.state / "drop" / "digits"
    eventually(lambda: not list(folder.iterdir()), "the drop folder is empty")
