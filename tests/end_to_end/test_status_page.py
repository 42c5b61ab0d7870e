"""The status page in a real browser."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edged.models.loading import load_checkpoint
from edged.version import __version__
from tests.support import scenes
from tests.support.browser import CONTRAST, EVIL, Browser, browsing, needs_browser
from tests.support.daemon import Daemon, eventually, running, workers
from tests.support.tasks import DetectionTask, Task
from tests.support.yolov5_samples import save_tiny, tiny_plan

DIGITS, SHAPES = (f'[data-key="model-{name}"]' for name in ("digits", "shapes"))
# But for tooltips, which the browser draws in colors of its own.
TEXTS = "[...document.querySelectorAll('body *:not(title)')]"
LOWEST = "(() => {" + CONTRAST + f"return Math.min(...{TEXTS}.map(contrast)); }})()"


@pytest.fixture(scope="module")
def daemon(task: Task, detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("page")
    serve: dict[str, Any] = {"port": 0}
    for key, secret in (("token_file", "s3cret"), ("inference_token_file", "inf3r")):
        (folder / key).write_text(secret)
        serve[key] = str(folder / key)
    shapes = {
        "name": "shapes",
        "calibration": {"dir": str(detection_task.calibration)},
        "input": {"size": scenes.SIDE},
        "quantization": {"bits": 8, "recipe": "fast"},
    }
    digits = {"name": "digits", "calibration": {"dir": str(task.calibration)}, "input": {"size": 8, "resize": 8}}
    models = [{**digits, "quantization": {"bits": 4, "recipe": "fast"}}, shapes]
    network: Any = load_checkpoint(detection_task.first).model
    evil = save_tiny(folder / "evil.pt", network, tiny_plan((EVIL, *scenes.NAMES[1:])))
    with running(folder, task.calibration, serve=serve, models=models) as daemon:
        daemon.drop(evil, model="shapes")
        daemon.put_live(task.first, EVIL)
        assert daemon.update_of("evil.pt")["state"] == "COMMITTED"
        yield daemon


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def browser(tab: Browser, daemon: Daemon) -> Iterator[Browser]:
    tab.complaints.clear()
    tab.open(daemon.status()["address"] + "/")
    yield tab
    tab.call("Emulation.clearDeviceMetricsOverride")
    tab.prefer("light")


def attempt(browser: Browser, panel: str, image: Path, token: str | None = None) -> str:
    """Try an image, with the token for inference unless another is given, and return the text of the answer."""
    token = "inf3r" if token is None else token
    browser.evaluate(f"document.getElementById('token').value = '{token}'")
    browser.evaluate(f"document.querySelector('{panel} .answer').replaceChildren()")
    browser.choose_file(f"{panel} .try input", image)
    browser.until(f"document.querySelector('{panel} .answer').querySelector('table, .problem')")
    text: str = browser.evaluate(f"document.querySelector('{panel} .answer').innerText")
    return text


def outputs(answer: httpx.Response) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


@needs_browser
def test_it_shows_what_is_live_and_runs_nothing_of_a_file_name(browser: Browser) -> None:
    text = browser.evaluate("document.body.innerText")
    expected = ("ready", "digits", "serving", "cifar_resnet20", EVIL, "COMMITTED", "Last updates", "Top-1", "mAP50")
    expected += ("assumed: shortcuts without parameters", "Disk free", "Nothing runs or waits", "/s")
    for words in (*expected, __version__, os.uname().nodename):
        assert words in text, words
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate(f"document.querySelectorAll('{DIGITS} rect.bar').length") == 20  # layers of a ResNet-20
    assert browser.evaluate("[...document.querySelectorAll('svg')].every((s) => s.getAttribute('aria-label'))")
    assert (
        browser.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href'))[0]") == "/metrics"
    )
    assert browser.complaints == []


@needs_browser
def test_boxes_of_a_detector_are_drawn_on_the_photo(
    browser: Browser, daemon: Daemon, detection_task: DetectionTask
) -> None:
    images = sorted((detection_task.test / "images").iterdir())
    seen = ((image, outputs(daemon.infer(image, model="shapes"))) for image in images)
    image, expected = next((image, found) for image, found in seen if EVIL in found["names"])  # a name of a class
    text = attempt(browser, SHAPES, image)
    assert f"{image.name}: {len(expected['scores'])} box" in text
    assert " ms" in text
    names = browser.evaluate(f"[...document.querySelectorAll('{SHAPES} .picture text')].map((t) => t.textContent)")
    shown = [f"{name} {100 * score:.1f} %" for name, score in zip(expected["names"], expected["scores"], strict=True)]
    assert sorted(names) == sorted(shown)
    placed = browser.evaluate(
        f"(() => {{ const whole = document.querySelector('{SHAPES} canvas').getBoundingClientRect();"
        f" const [x, y] = [{scenes.WIDTH} / whole.width, {scenes.HEIGHT} / whole.height];"
        f" return [...document.querySelectorAll('{SHAPES} rect.box')].reverse().flatMap((box) => {{ const at ="
        " box.getBBox(); return [at.x * x, at.y * y, (at.x + at.width) * x, (at.y + at.height) * y]; }); })()"
    )
    assert placed == pytest.approx(expected["boxes"], abs=0.05)
    pixels = f"document.querySelector('{SHAPES} canvas').getContext('2d').getImageData(0, 0, 96, 72).data"
    red = f"{pixels}.some((value, at) => at % 4 === 0 && value > 200)"
    assert browser.evaluate(red)  # the photo is there, below the boxes
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.complaints == []


@needs_browser
def test_the_most_probable_classes_of_a_classifier_are_listed(browser: Browser, daemon: Daemon, task: Task) -> None:
    image = next((task.test / "3").iterdir())
    text = attempt(browser, DIGITS, image)
    (logits,) = (outputs(daemon.infer(image))["logits"],)
    ranked = sorted(range(10), key=lambda number: -logits[number])[:5]
    rows = browser.evaluate(
        f"[...document.querySelectorAll('{DIGITS} .answer tr')].map((row) =>"
        " [row.cells[0].textContent, row.querySelector('progress').value, row.cells[2].textContent])"
    )
    assert [row[0] for row in rows] == [str(number) for number in ranked]
    most = max(logits)
    weights = [2.718281828459045 ** (logit - most) for logit in logits]
    assert [row[1] for row in rows] == pytest.approx([weights[number] / sum(weights) for number in ranked], abs=1e-6)
    assert rows[0][2] == f"{100 * rows[0][1]:.1f} %"
    assert f"{image.name}: {ranked[0]} {rows[0][2]} in " in text
    assert browser.complaints == []


@needs_browser
def test_an_image_that_is_refused_shows_the_text_of_the_daemon(browser: Browser, task: Task, tmp_path: Path) -> None:
    image = next((task.test / "3").iterdir())
    assert "wrong or missing token" in attempt(browser, DIGITS, image, token="")
    broken = tmp_path / "<b>notes.png"
    broken.write_text("no image")
    with contextlib.suppress(StopIteration):
        assert attempt(browser, DIGITS, broken).startswith("image 0 ")
    assert not [text for text in browser.complaints if "400" not in text and "403" not in text]


@needs_browser
def test_what_runs_and_what_waits_is_shown(browser: Browser, daemon: Daemon, task: Task) -> None:
    daemon.drop(task.second, "runs.pt")
    (worker,) = eventually(lambda: workers(daemon), "a worker runs")
    worker.suspend()
    try:
        daemon.drop(task.first, "waits.pt")
        daemon.await_queued("waits.pt")
        browser.until("document.querySelectorAll('.queue > li').length === 2")  # by itself, in time
        first, second = browser.evaluate("[...document.querySelectorAll('.queue > li')].map((row) => row.innerText)")
        assert "runs.pt" in first
        assert "waits.pt" in second
        assert browser.evaluate("document.querySelectorAll('.queue [aria-current=step]').length") >= 1
        browser.evaluate("document.getElementById('token').value = 's3cret'")
        browser.evaluate("document.querySelector('.queue > li:last-child button').click()")
        browser.until("document.getElementById('message').textContent.endsWith('waits.pt: CANCELLED')")
        browser.until("document.querySelectorAll('.queue > li').length === 1")
    finally:
        worker.resume()
    browser.until("document.querySelectorAll('.queue > li').length === 0")
    assert daemon.update_of("runs.pt")["state"] == "COMMITTED"
    browser.evaluate("document.querySelector('tbody button[data-post$=\"/retry\"]').click()")
    browser.until("document.getElementById('message').textContent.includes('takes the file of update')")
    assert daemon.update_of("waits.pt")["state"] == "COMMITTED"
    assert browser.complaints == []


@needs_browser
def test_a_file_that_is_not_taken_is_shown_with_the_reason(browser: Browser, daemon: Daemon) -> None:
    lost = daemon.state / "drop" / "<b>lost.pt"
    lost.write_bytes(b"in the folder of no model")
    browser.until("document.querySelector('.unclaimed li')?.textContent.includes('drop/<b>lost.pt')")
    reason = eventually(lambda: daemon.status()["unclaimed"], "it is listed")[0]["reason"]
    assert reason in browser.evaluate("document.querySelector('.unclaimed').textContent")
    lost.unlink()
    browser.until("!document.querySelector('.unclaimed')")
    assert browser.complaints == []


@needs_browser
def test_it_is_legible_by_day_and_by_night(
    browser: Browser, task: Task, detection_task: DetectionTask, tmp_path: Path
) -> None:
    attempt(browser, SHAPES, next((detection_task.test / "images").iterdir()))
    attempt(browser, DIGITS, next((task.test / "3").iterdir()))
    seen = []
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        seen.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert browser.evaluate(LOWEST) >= 4.5
        browser.screenshot(Path(os.environ.get("EDGED_SCREENSHOTS", tmp_path), f"{scheme}.png"))
    assert seen[0] != seen[1]
    # On a phone nothing but what scrolls, and says so, is wider than the screen.
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    assert browser.evaluate("[...document.querySelectorAll('.scroll')].every((area) => area.tabIndex === 0)")


@needs_browser
def test_bars_are_read_with_the_keyboard_and_the_pointer(browser: Browser, daemon: Daemon) -> None:
    readout = f"document.querySelector('{DIGITS} .readout').textContent"
    browser.evaluate(f"document.querySelector('{DIGITS} .scroll.bars').focus()")
    for key, name in (("ArrowRight", "conv1"), ("ArrowRight", "layer1.0.conv1"), ("End", "linear"), ("Home", "conv1")):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert browser.evaluate(readout).startswith(f"{name}: "), key
    browser.evaluate(f"document.querySelectorAll('{DIGITS} .column')[1].scrollIntoView()")
    x, y = browser.evaluate(
        f"(() => {{ const at = document.querySelectorAll('{DIGITS} .hit')[1].getBoundingClientRect();"
        " return [at.x + at.width / 2, at.y + 2]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.evaluate(readout).startswith("layer1.0.conv1: ")
    named = browser.evaluate(f"[...document.querySelectorAll('{DIGITS} .column text')].map((t) => t.textContent)")
    assert len(named) == 20
    assert named[0] == "conv1"


@needs_browser
def test_times_are_those_of_the_viewer(browser: Browser, daemon: Daemon) -> None:
    browser.call("Emulation.setTimezoneOverride", timezoneId="Asia/Kathmandu")  # 5 h 45 min ahead
    try:
        browser.open(daemon.status()["address"] + "/")
        shown = (
            "(() => { const time = document.querySelector('header time'); return [time.textContent, time.title]; })()"
        )
        text, title = browser.evaluate(shown)
        started = daemon.status()["started_at"]
        assert title == f"{started[:19].replace('T', ' ')} UTC"
        ahead = browser.evaluate(f"(Date.parse('{text.replace(' ', 'T')}Z') - Date.parse('{started[:19]}Z')) / 60000")
        assert ahead == 345
    finally:
        browser.call("Emulation.setTimezoneOverride", timezoneId="")


@needs_browser
def test_a_digest_is_copied_whole(browser: Browser, daemon: Daemon) -> None:
    digest = daemon.update_of("evil.pt")["sha256"]
    copied = "navigator.clipboard.readText()"
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.evaluate(f"document.querySelector('button[data-copy=\"{digest}\"]').click()")
    browser.until("document.getElementById('message').textContent.startsWith('copied')")
    assert browser.evaluate(copied) == digest
    # Over plain HTTP on another device there is no such clipboard.
    browser.evaluate("Object.defineProperty(navigator.clipboard, 'writeText', { value: () => Promise.reject() })")
    other = daemon.update_of(EVIL)["sha256"]
    x, y = browser.evaluate(
        f"(() => {{ const button = document.querySelector('button[data-copy=\"{other}\"]'); button.scrollIntoView();"
        " const at = button.getBoundingClientRect(); return [at.x + 5, at.y + 5]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.until(f"document.getElementById('message').textContent === 'copied {other}'")
    assert browser.evaluate(copied) == other


@needs_browser
def test_drop_and_roll_back_with_the_token(browser: Browser, daemon: Daemon, task: Task, tmp_path: Path) -> None:
    before = daemon.generation()
    assert before is not None
    button = f"document.querySelector('{DIGITS} button[data-post]')"
    browser.evaluate(f"{button}.click()")
    browser.until("document.getElementById('message').textContent.includes('wrong or missing token')")

    answer = attempt(browser, DIGITS, next((task.test / "3").iterdir()))
    browser.evaluate("document.querySelector('td details').open = true")
    file = tmp_path / "from the page.pt"
    shutil.copy(task.second, file)
    browser.evaluate("document.getElementById('token').value = 's3cret'")
    browser.choose_file(f"{DIGITS} form.drop input", file)
    browser.evaluate(f"document.querySelector('{DIGITS} form.drop').requestSubmit()")
    browser.until("document.getElementById('message').textContent.includes('is in the drop folder of digits')")
    update = daemon.update_of(file.name)
    assert update["state"] == "COMMITTED"
    browser.until("document.querySelector('main').innerText.includes('from the page.pt')")  # by itself, in time
    # What the viewer has opened, typed and tried outlasts the refresh.
    assert browser.evaluate(f"document.querySelector('{DIGITS} .answer').innerText") == answer
    assert browser.evaluate("document.querySelectorAll('td details[open]').length") == 1
    assert browser.evaluate("document.getElementById('token').value") == "s3cret"

    target = daemon.get("/edged/v1/models/digits/history").json()["previous"]
    browser.until(f"{button}.textContent === 'Roll back to generation {target}'")
    browser.evaluate(f"{button}.click()")
    browser.until(f"document.getElementById('message').textContent.includes('generation {target} is live again')")
    assert daemon.generation() == target
    assert not [text for text in browser.complaints if "403" not in text]


@needs_browser
def test_without_scripts_it_shows_all_but_the_actions(browser: Browser, daemon: Daemon) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(daemon.status()["address"] + "/")
        text = browser.evaluate("document.body.innerText")
        for words in ("Actions need JavaScript", "With curl", " UTC", EVIL, "Loss of each layer"):
            assert words in text, words
        assert browser.evaluate("[...document.querySelectorAll('button, input')].every((x) => !x.checkVisibility())")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_line_for_curl_works(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    shutil.copy(next((task.test / "3").iterdir()), tmp_path / "photo.jpg")
    with daemon.tcp() as client:
        line = html.unescape(re.search("<code>(curl [^<]*/digits/[^<]*)</code>", client.get("/").text)[1])  # type: ignore[index]
    command = shlex.split(line.replace("TOKEN", "inf3r"))
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    labels = json.loads(answer.stdout)["outputs"][0]
    assert (labels["name"], labels["data"][0]) == ("labels", "3")


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
        assert post(f"digits/drop?name={name}").status_code == 400
    answer = post("digits/drop?name=empty.pt", content=b"")
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint")
    assert post("digits/drop?name=bad.pt", content=b"no checkpoint").status_code == 202
    assert daemon.update_of("bad.pt")["state"] == "REJECTED"
    folder = daemon.state / "drop" / "digits"
    eventually(lambda: not list(folder.iterdir()), "the drop folder is empty")
