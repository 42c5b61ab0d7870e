"""Live requests that are looked at: kept for calibration, compared with it, and neither unless asked for."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.support.daemon import Daemon, eventually, running
from tests.support.tasks import Task

MOST = 6


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    calibration = tmp_path_factory.mktemp("images")
    for index in range(200):
        task.digits.png(index, calibration / f"{index:04}.png")
    with running(tmp_path_factory.mktemp("sampling"), calibration) as daemon:
        daemon.put_live(task.first)
        yield daemon


def configure(daemon: Daemon, **settings: Any) -> None:
    for key in ("capture", "drift"):
        daemon.config["models"][0].pop(key, None)
    daemon.config["models"][0].update(settings)
    daemon.reload()


def captured(daemon: Daemon) -> list[Path]:
    return sorted((daemon.state / "capture" / "digits").glob("[!.]*"))


def results(daemon: Daemon, result: str = "stored") -> float:
    return daemon.metric(f'edged_captured_images_total{{model="digits",result="{result}"}}') or 0


def ask_until(daemon: Daemon, image: Path, count: float) -> None:
    """One after another, so that none is left out."""
    while (before := results(daemon)) < count:
        assert daemon.infer(image).status_code == 200
        eventually(lambda before=before: results(daemon) > before, "an image is kept")


def calib(daemon: Daemon, *arguments: object) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "service.cli.main", "calib", *map(str, arguments), "--json"]
    done = subprocess.run([*command, "--config", str(daemon.folder / "edged.yaml")], capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_by_default_nothing_is_kept(daemon: Daemon, task: Task) -> None:
    for image in sorted(task.test.rglob("*.png"))[:3]:
        assert daemon.infer(image).status_code == 200
    assert daemon.metric('edged_calibration_drift_images{model="digits"}') is None
    assert not (daemon.state / "capture").exists()


def test_images_are_kept_as_they_came_so_many_and_no_more(daemon: Daemon, task: Task) -> None:
    configure(daemon, capture={"share": 1.0, "max_images": MOST})
    images = sorted(task.test.rglob("*.png"))[: MOST + 2]
    for count, image in enumerate(images, 1):
        ask_until(daemon, image, count)
    assert [path.read_bytes() for path in captured(daemon)] == [image.read_bytes() for image in images[-MOST:]]
    folder = daemon.state / "capture" / "digits"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in captured(daemon)} == {0o600}


def test_pixels_are_kept_as_the_image_that_calibration_reads_as_the_same(daemon: Daemon, task: Task) -> None:
    pixels = task.digits.images[1700]
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": pixels.ravel().tolist()}
    before = results(daemon)
    assert daemon.post("/v2/models/digits/infer", json={"inputs": [tensor]}).status_code == 200
    eventually(lambda: results(daemon) > before, "an image is kept")
    kept = np.asarray(Image.open(io.BytesIO(captured(daemon)[-1].read_bytes())))
    assert np.array_equal(kept.transpose(2, 0, 1), pixels)


def test_a_tensor_that_is_no_image_is_counted_and_not_kept(daemon: Daemon) -> None:
    before = captured(daemon)
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.123] * 192}
    assert daemon.post("/v2/models/digits/infer", json={"inputs": [tensor]}).status_code == 200
    eventually(lambda: results(daemon, "no_image") == 1, "it is counted")
    assert captured(daemon) == before


def test_what_cannot_be_answered_is_not_kept(daemon: Daemon) -> None:
    before = captured(daemon)
    data = base64.b64encode(b"no image").decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}
    assert daemon.post("/v2/models/digits/infer", json={"inputs": [tensor]}).status_code == 400
    assert captured(daemon) == before


def test_they_join_the_calibration_images(daemon: Daemon, task: Task) -> None:
    configure(daemon, capture={"share": 0.0})
    known = {hashlib.sha256(path.read_bytes()).hexdigest() for path in task.calibration.rglob("*.png")}
    expected = {hashlib.sha256(path.read_bytes()).hexdigest() for path in captured(daemon)} - known
    code, found = calib(daemon, "add", "digits", "--from-capture")
    assert (code, len(found["added"]), found["refused"]) == (0, len(expected), [])
    assert {stat.S_IMODE(Path(found["folder"], name).stat().st_mode) for name in found["added"]} == {0o640}
    [listed] = calib(daemon, "list", "digits")[1]["models"]
    assert (listed["images"], listed["cache"]) == (200 + len(expected), "outdated")
    assert listed["captured"]["images"] == MOST
    code, found = calib(daemon, "add", "digits", "--from-capture")
    assert (code, found["added"], found["known"]) == (0, [], MOST)


def test_no_share_keeps_no_more_and_purge_erases(daemon: Daemon, task: Task) -> None:
    before, stored = captured(daemon), results(daemon)
    assert daemon.infer(next(task.test.rglob("*.png"))).status_code == 200
    code, found = calib(daemon, "purge", "digits")
    assert (code, found["removed"]) == (0, len(before))
    assert not (daemon.state / "capture" / "digits").exists()
    assert results(daemon) == stored


def test_the_drift_tells_the_same_camera_from_another(daemon: Daemon, task: Task) -> None:
    configure(daemon, drift={"share": 1.0})

    def figures() -> tuple[float, float | None]:
        lines = dict(line.rsplit(" ", 1) for line in daemon.get("/metrics").text.splitlines())
        drift = lines.get('edged_calibration_drift{model="digits"}')
        images = float(lines.get('edged_calibration_drift_images{model="digits"}', 0))
        return images, None if drift is None else float(drift)

    def look_at(images: Iterable[npt.NDArray[np.uint8]], target: int, least: float = 0.0) -> float | None:
        """Ask until so many were looked at, and at least as often, and the drift is as large; returns the drift then.

        Of many requests at once some are not looked at, so images of before may stay for a while.
        """
        with daemon.tcp() as client:
            for count, pixels in enumerate(itertools.islice(itertools.cycle(images), 8000)):
                tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": pixels.ravel().tolist()}
                assert client.post("/v2/models/digits/infer", json={"inputs": [tensor]}).status_code == 200
                if count % 8 == 7:
                    seen, drift = figures()
                    assert (drift is None) == (seen < 128)  # by chance alone few images are far off
                    if seen >= target and count >= target and (drift or 0.0) >= least:
                        return drift
        raise AssertionError

    same = look_at(task.digits.images[200:600], 160)
    assert same is not None
    assert 0 <= same < 0.1
    inverted = look_at(255 - task.digits.images[200:600], 256, 0.25)
    assert inverted is not None
    configure(daemon, drift={"share": 0.0})
    assert figures() == (0, None)
    assert not (daemon.state / "capture" / "digits").exists()


def test_a_model_that_is_configured_no_more_takes_its_images_along(daemon: Daemon) -> None:
    left = daemon.state / "capture" / "gone"
    left.mkdir(parents=True)
    (left / "0000000000001-00000000.png").write_bytes(b"x")
    configure(daemon)
    assert not left.exists()
