"""The report of a classifier, a detector and a refused file: written by the real daemon, seen in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import scenes
from tests.support.browser import CONTRAST, EVIL, Browser, browsing, needs_browser
from tests.support.daemon import Daemon, eventually, running
from tests.support.tasks import DetectionTask, Task

# But for tooltips, and for the names of boxes, which have a dark plate behind them whatever the page's colour is.
TEXTS = "[...document.querySelectorAll('body *:not(title):not(.tag)')]"
LOWEST = "(() => {" + CONTRAST + f"return Math.min(...{TEXTS}.map(contrast)); }})()"
COUNT = "document.querySelectorAll({!r}).length"


@pytest.fixture(scope="module")
def daemon(task: Task, detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    digits = {"name": "digits", "calibration": {"dir": str(task.calibration)}, "input": {"size": 8, "resize": 8}}
    shapes = {
        "name": "shapes",
        "calibration": {"dir": str(detection_task.calibration)},
        "input": {"size": scenes.SIDE},
        "quantization": {"bits": 8},
        "detection": {"confidence": 0.1},
    }
    # At two bits no detector sees every box that it saw before.
    rough = {"bits": 2, "method": "rtn"}
    strict = {**shapes, "name": "strict", "gates": {"min_agreement": 100}, "quantization": rough}
    models = [{**digits, "quantization": {"bits": 4, "recipe": "fast"}}, shapes, strict]
    with running(tmp_path_factory.mktemp("report"), task.calibration, models=models) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def classified(daemon: Daemon, task: Task) -> dict[str, Any]:
    return daemon.put_live(task.first, EVIL)


@pytest.fixture(scope="module")
def detected(daemon: Daemon, detection_task: DetectionTask) -> dict[str, Any]:
    return daemon.put_live(detection_task.first, model="shapes")


@pytest.fixture(scope="module")
def refused(daemon: Daemon, detection_task: DetectionTask) -> dict[str, Any]:
    daemon.drop(detection_task.second, model="strict")
    update = daemon.update_of(detection_task.second.name)
    assert (update["state"], update["code"]) == ("REJECTED", "gate")
    return update


def seen(browser: Browser, url: str, name: str, folder: Path) -> str:
    """Open a page as a desktop and as a phone; what holds for each report is checked, its text returned."""
    shots = Path(os.environ.get("EDGED_SCREENSHOTS", folder))
    for width in (1200, 360):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        browser.open(url)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            assert browser.evaluate(LOWEST) >= 4.5
        browser.screenshot(shots / f"report-{name}-{width}.png")
    assert browser.complaints == []
    # Pictures are in the page itself; nothing else was asked for.
    assert (
        browser.evaluate("performance.getEntriesByType('resource').filter((r) => !/^data:/.test(r.name)).length") == 0
    )
    assert browser.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.evaluate(COUNT.format("script")) == 0
    text = browser.evaluate("document.body.innerText")
    assert isinstance(text, str)
    return text


@needs_browser
def test_a_classifiers_report(daemon: Daemon, classified: dict[str, Any], tmp_path: Path) -> None:
    address = daemon.status()["address"]
    with browsing() as browser:
        text = seen(browser, f"{address}/edged/v1/updates/{classified['id']}/report", "classifier", tmp_path)
        for expected in ("COMMITTED", EVIL, "cifar_resnet20", "quantize", "full precision", "Peak memory", "Top-1"):
            assert expected in text
        assert browser.evaluate(COUNT.format("img")) == 0  # without a token
        assert browser.evaluate(COUNT.format("svg[role=img]")) == 4
        assert browser.evaluate(COUNT.format("rect.bar")) >= 2 * 20 + 12  # loss and bits of each layer, stages
        assert browser.evaluate(COUNT.format("rect.band")) >= 4
        browser.open((daemon.state / "models" / "digits" / "gen" / "1" / "report.html").as_uri())
        assert browser.evaluate(COUNT.format("img")) == 8
        # The status page leads here.
        browser.open(f"{address}/")
        browser.follow('a[href$="/report"]')
        assert browser.evaluate("document.title").startswith("edged: update")


@pytest.mark.slow  # the report of a refused detector is seen below
@needs_browser
def test_a_detectors_report_from_its_file(daemon: Daemon, detected: dict[str, Any], tmp_path: Path) -> None:
    page = daemon.state / "models" / "shapes" / "gen" / "1" / "report.html"
    with browsing() as browser:
        text = seen(browser, page.as_uri(), "detector", tmp_path)
        for expected in ("COMMITTED", "mAP50-95", "Full precision: ", "Quantized: "):
            assert expected in text
        assert browser.evaluate(COUNT.format("use")) == 2 * browser.evaluate(COUNT.format("symbol")) == 16
        assert browser.evaluate(COUNT.format("rect.box")) > 8
        # Drawn inside their pictures.
        inside = (
            "[...document.querySelectorAll('rect.box')].every((b) => { const p = b.ownerSVGElement.querySelector('use')"
        )
        inside += ".getBoundingClientRect(), r = b.getBoundingClientRect(); return r.left >= p.left - 3 &&"
        inside += " r.right <= p.right + 3 && r.top >= p.top - 3 && r.bottom <= p.bottom + 3; })"
        assert browser.evaluate(inside)


@needs_browser
def test_a_refused_files_report_shows_why(daemon: Daemon, refused: dict[str, Any], tmp_path: Path) -> None:
    page = daemon.state / "rejected" / refused["sha256"] / "report.html"
    assert (page.parent / "reason.json").is_file()
    eventually(page.is_file, "the report is written")
    with browsing() as browser:
        text = seen(browser, page.as_uri(), "refused", tmp_path)
        assert refused["reason"] in text
        assert "Sample predictions" in text
        assert browser.evaluate(COUNT.format("rect.bar")) >= 2 * 18


def test_the_report_over_http(daemon: Daemon, classified: dict[str, Any]) -> None:
    target = f"/edged/v1/updates/{classified['id']}/report"
    with daemon.tcp() as client:
        page = client.get(target)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert EVIL not in page.text
        assert "data:image" not in page.text
        found = client.get(f"{target}.json").json()
        assert client.get("/edged/v1/updates/999/report").status_code == 404
    assert {image["picture"] for image in found["predictions"]["images"]} == {None}  # without a token
    file = daemon.state / "models" / "digits" / "gen" / "1" / "report.html"
    page = daemon.get(target)
    eventually(lambda: file.read_text() == page.text, "the report is written")
    assert page.text.count("data:image") == 8
    copies = [*daemon.state.glob("models/digits/gen/1/*"), *daemon.state.glob("calib/digits/*/*")]
    assert {"warmup.safetensors", "predictions.json", "images.u8"} < {path.name for path in copies}
    assert not [path for path in copies if path.stat().st_mode & 0o007]  # such images may show people
    assert found["course"]["update"] == classified["id"]
    assert max(used for _, used in found["course"]["memory"]) > 50e6
    assert len(found["predictions"]["images"]) == 8
    assert {span["stage"] for span in found["timeline"]} >= {"settle", "verify", "quantize", "warm", "swap"}


def test_the_command(daemon: Daemon, classified: dict[str, Any], refused: dict[str, Any]) -> None:
    def edged(*arguments: str) -> str:
        command = [
            sys.executable,
            "-m",
            "service.cli.main",
            "report",
            *arguments,
            "--config",
            daemon.folder / "edged.yaml",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    assert edged(str(classified["id"])).startswith(f"update {classified['id']} of digits: COMMITTED")
    found = json.loads(edged("strict", "--json"))
    assert (found["update"]["state"], len(found["report"]["layers"])) == ("REJECTED", 18)
    assert found["path"] == str(daemon.state / "rejected" / refused["sha256"] / "report.html")


@pytest.mark.slow
def test_a_worker_that_takes_too_much_leaves_its_course(task: Task, tmp_path: Path) -> None:
    worker = {"memory_max": "60MiB", "tries": 1}
    with running(tmp_path, task.calibration, worker=worker) as daemon:
        daemon.drop(task.first)
        update = daemon.update_of(task.first.name)
        assert (update["state"], update["code"]) == ("FAILED", "memory")
        folder = daemon.state / "rejected" / update["sha256"]
        eventually((folder / "report.html").exists, "its report")
        course = json.loads((folder / "course.json").read_text())
        assert course["memory_max"] == 60 << 20
        assert max(used for _, used in course["memory"]) > 60 << 20
        assert "Resident memory of the worker" in (folder / "report.html").read_text()
