"""Images and labels as users have them: an update uses those that can be used, and names the others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from edged.calibration.folder import label_path
from tests.support import scenes
from tests.support.daemon import Daemon, eventually, running
from tests.support.odd_images import damaged_exif, mpo, rgb, write_odd_images
from tests.support.pictures import encode
from tests.support.tasks import DetectionTask, Task

LABELS = 'edged_updates_total{model="shapes",reason="calibration",result="failed"}'


@cache
def giant(kind: str, width: int, height: int, **options: object) -> bytes:
    """Return an image of a gray ramp, a few hundred kilobytes however large it is."""
    ramp = Image.linear_gradient("L").resize((width, height), Image.Resampling.NEAREST)
    return encode(ramp, kind, **options)


def spoil(folder: Path) -> None:
    """Add to a folder of scenes what users have in theirs."""
    images, labels = folder / "images", folder / "labels"
    odd = write_odd_images(images)
    labels.joinpath("progressive.txt").write_text("0 0.95 0.5 0.2 0.5\n0 0.95 0.5 0.2 0.5\n1 .1 .1 .3 .1 .3 .4 .1 .4\n")
    for name in ("rgba.png", "16-bit-gray.png", "one-bit.png"):
        label_path(images / name).write_text("0 0.5 0.5 0.1\n")
    assert len(odd) > 40
    (images / "giant.jpg").write_bytes(giant("JPEG", 12_000, 10_000, quality=50))
    (images / "giant.png").write_bytes(giant("PNG", 10_000, 10_000, compress_level=1))
    (images / "too-giant.png").write_bytes(giant("PNG", 10_000, 15_000, compress_level=1))
    (images / "strip.png").write_bytes(giant("PNG", 60_000, 2))
    (images / "damaged-exif.jpg").write_bytes(damaged_exif())
    (images / "cut.jpg").write_bytes(encode(rgb(), "JPEG")[:200])
    for name in ("a.gif", "b.heic", "c.heic", "d.tif"):
        (images / name).write_bytes(b"GIF89a")


@pytest.fixture(scope="module")
def place(detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of a spoiled data set."""
    folder = tmp_path_factory.mktemp("set")
    shutil.copytree(detection_task.calibration, folder, dirs_exist_ok=True)
    spoil(folder)
    keys = {"path": ".", "train": "images", "val": "nowhere", "names": dict(enumerate(scenes.NAMES))}
    (folder / "data.yaml").write_text(yaml.safe_dump(keys))
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def daemon(task: Task, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    models = [
        {
            "name": "shapes",
            "calibration": {"dir": str(place)},
            "input": {"size": scenes.SIDE},
            "quantization": {"bits": 8},
            "gates": {"min_agreement": 50, "max_drop": 50},
            "capture": {"share": 1.0},
        },
    ]
    worker = {"retry_s": 0.1, "tries": 1}
    with running(tmp_path_factory.mktemp("images"), task.calibration, models=models, worker=worker) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def first(daemon: Daemon, detection_task: DetectionTask) -> dict[str, Any]:
    return daemon.put_live(detection_task.first, model="shapes")


def test_an_update_succeeds_with_what_can_be_used(daemon: Daemon, first: dict[str, Any]) -> None:
    report = json.loads((daemon.state / "models" / "shapes" / "gen" / "1" / "report.json").read_text())
    skipped = {Path(entry["path"]).name: entry["reason"] for entry in report["skipped_images"]}
    assert skipped.keys() == {"cut.jpg", "too-giant.png"}
    assert skipped["too-giant.png"].startswith("has too many pixels, 10000 x 15000; at most ")
    assert report["image_notes"][:2] == [
        "from train of the data.yaml",
        "4 files are passed over: 2 .heic, 1 .gif, 1 .tif",
    ]
    assert "map50_95" in report["totals"]["quantized"]


def test_the_log_says_each_thing_once_with_counts(daemon: Daemon, first: dict[str, Any], place: Path) -> None:
    log = daemon.log.read_text()
    assert log.count(f"{place}: 4 files are passed over: 2 .heic, 1 .gif, 1 .tif\n") == 1
    assert (
        len(re.findall(r": 3 images are left out for their labels: labels/\S+\.txt, line 1, class 0: 4 numbers", log))
        == 1
    )
    repaired = (
        r": 1 box over the edge is clipped \(first: labels/progressive.txt, line 1\); 1 repeated line counts once"
    )
    assert len(re.findall(repaired, log)) == 1
    assert "Corrupt EXIF" not in log  # what Pillow says of a damaged-exif.jpg
    assert "DecompressionBombWarning" not in log
    assert "Traceback" not in log


def test_labels_that_fit_no_more_end_an_update_and_not_the_live_model(
    daemon: Daemon, first: dict[str, Any], place: Path, detection_task: DetectionTask
) -> None:
    labels = place.parent / "labels"
    kept = {path: path.read_bytes() for path in labels.iterdir()}
    for path in labels.iterdir():
        path.write_text("0 0.5 0.5 0.1 0.1\n\n5 0.5 0.5 0.1 0.1\n")
    daemon.drop(detection_task.second, "others.pt", "shapes")
    update = daemon.update_of("others.pt")
    assert (update["state"], update["code"]) == ("FAILED", "calibration"), update
    assert "gates.max_drop needs labels" in update["reason"]
    told = json.loads((daemon.state / "rejected" / update["sha256"] / "reason.json").read_text())
    assert (told["file_name"], told["code"], told["reason"]) == ("others.pt", "calibration", update["reason"])
    eventually(lambda: daemon.metric(LABELS) == 1, "it is counted")
    assert daemon.generation("shapes") == 1
    assert daemon.infer(place.parent / "images" / "00001.png", model="shapes").status_code == 200
    for path, content in kept.items():
        path.write_bytes(content)
    assert daemon.put_live(detection_task.second, "again.pt", "shapes")["generation"] == 2


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("phone.jpg", mpo),
        ("exif.jpg", damaged_exif),
        ("giant.jpg", partial(giant, "JPEG", 12_000, 10_000, quality=50)),
        ("strip.png", partial(giant, "PNG", 60_000, 2)),
    ],
)
def test_a_photo_of_any_size_is_answered_and_captured(
    daemon: Daemon, first: dict[str, Any], tmp_path: Path, name: str, make: Callable[[], bytes]
) -> None:
    data = make()
    (tmp_path / name).write_bytes(data)
    parameters = {"priority": 1, "timeout": 5000, "content_type": "np", "confidence": 0.9}
    answer = daemon.infer(tmp_path / name, model="shapes", parameters=parameters)
    assert answer.status_code == 200, answer.text
    ring = daemon.state / "capture" / "shapes"
    eventually(lambda: any(path.read_bytes() == data for path in ring.glob("*" + name[-4:])), "it is captured")


def test_what_is_no_image_is_named_to_the_client(daemon: Daemon, first: dict[str, Any], tmp_path: Path) -> None:
    for name, data, reason in (
        ("a.gif", encode(rgb(), "GIF"), "image 0 is not a JPEG, PNG, WEBP or BMP image, but GIF"),
        ("b.png", giant("PNG", 10_000, 10_000, compress_level=1), "image 0 has too many pixels, 10000 x 10000"),
    ):
        (tmp_path / name).write_bytes(data)
        answer = daemon.infer(tmp_path / name, model="shapes")
        assert (answer.status_code, reason in answer.json()["error"]) == (400, True), answer.text
    assert "Corrupt EXIF" not in daemon.log.read_text()
    assert daemon.get("/v2/models/shapes/").headers["location"] == "../shapes"
