"""A classifier and a detector in one daemon: both serve, each is updated by itself, bad detectors are told apart."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edged.artifacts.reader import read_artifact
from edged.calibration.images import decode, normalize
from edged.calibration.letterbox import Letterbox
from edged.models.nms import pairwise_iou
from edged.models.yolov5 import decode as decoding
from edged.spec import DetectionSpec
from tests.support import scenes
from tests.support.daemon import Daemon, running
from tests.support.repository import ROOT
from tests.support.tasks import DetectionTask, Task
from tests.support.yolov5_samples import classes_of_yolov5, pickled, save_tiny, tiny_model, yaml_of

PAGE = ROOT / "docs" / "http.md"
BOXES = ["boxes", "scores", "class_ids", "names", "counts"]
THRESHOLDS = DetectionSpec(0.1, 0.5, 50)


@pytest.fixture(scope="module")
def daemon(task: Task, detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    models = [
        {"name": "digits", "calibration": {"dir": str(task.calibration)}, "input": {"size": 8, "resize": 8}},
        {
            "name": "shapes",
            "calibration": {"dir": str(detection_task.calibration)},
            "input": {"size": scenes.SIDE},
            "quantization": {"bits": 8},
            "detection": {"confidence": 0.1, "iou": 0.5, "max_detections": 50},
            "gates": {"min_agreement": 80, "max_drop": 5},
        },
    ]
    with running(tmp_path_factory.mktemp("two"), task.calibration, models=models) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def first(daemon: Daemon, task: Task, detection_task: DetectionTask) -> dict[str, Any]:
    """Both models live, dropped at the same time; returns the detector's update."""
    daemon.drop(task.first, model="digits")
    daemon.drop(detection_task.first, model="shapes")
    updates = [daemon.update_of(path.name) for path in (task.first, detection_task.first)]
    assert [update["state"] for update in updates] == ["COMMITTED"] * 2, updates
    return updates[1]


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def boxes_of(found: dict[str, Any]) -> Tensor:
    return torch.tensor(found["boxes"]["data"]).reshape(found["boxes"]["shape"])


def test_boxes_are_those_of_the_artifact_and_lie_on_what_is_there(
    daemon: Daemon, first: dict[str, Any], detection_task: DetectionTask
) -> None:
    images = sorted((detection_task.test / "images").iterdir())[:12]
    found = outputs(daemon.infer(*images, model="shapes"))
    assert list(found) == BOXES
    boxes, counts = boxes_of(found), found["counts"]["data"]
    artifact = read_artifact(daemon.state / "models" / "shapes" / "current")
    assert artifact.architecture.plan is not None
    model, start, right, there = artifact.load_model(), 0, 0, 0
    for path, count in zip(images, counts, strict=True):
        pixels = normalize(decode(path.read_bytes(), artifact.input).pixels[None], artifact.input)
        raw = model(torch.from_numpy(pixels))[0]
        seen = decoding.detect(raw.numpy(), artifact.architecture.plan, scenes.SIDE, scenes.SIDE, THRESHOLDS)
        expected = seen.in_original(Letterbox(scenes.WIDTH, scenes.HEIGHT, scenes.SIDE))
        part = slice(start, start + count)
        np.testing.assert_allclose(boxes[part], expected.boxes, rtol=1e-3, atol=0.05)
        np.testing.assert_allclose(found["scores"]["data"][part], expected.scores, rtol=1e-3, atol=1e-3)
        assert found["class_ids"]["data"][part] == expected.classes.tolist()
        assert found["names"]["data"][part] == [scenes.NAMES[kind] for kind in expected.classes.tolist()]
        _, truth, kinds = scenes.scene(int(path.stem))
        same = torch.tensor(found["class_ids"]["data"][part])[:, None] == kinds[None]
        right += int(((pairwise_iou(boxes[part].numpy(), truth.numpy()) > 0.5) & same.numpy()).any(0).sum())
        there += len(truth)
        start += count
    assert start == len(boxes)
    assert right > 0.6 * there


def test_a_request_can_ask_for_less_or_for_raw_outputs(
    daemon: Daemon, first: dict[str, Any], detection_task: DetectionTask
) -> None:
    image = min((detection_task.test / "images").iterdir())
    everything = outputs(daemon.infer(image, model="shapes"))
    best = outputs(daemon.infer(image, model="shapes", parameters={"max_detections": 1}))
    assert best["scores"]["data"] == everything["scores"]["data"][:1]
    assert best["boxes"]["data"] == everything["boxes"]["data"][:4]

    prepared = normalize(decode(image.read_bytes(), scenes.INPUT).pixels[None], scenes.INPUT)
    tensor = {"name": "input", "datatype": "FP32", "shape": list(prepared.shape), "data": prepared.flatten().tolist()}
    body = {"inputs": [tensor], "outputs": [{"name": "raw"}, {"name": "decoded"}]}
    found = outputs(daemon.post("/v2/models/shapes/infer", json=body))
    raw, decoded = (torch.tensor(found[name]["data"]).reshape(found[name]["shape"]) for name in ("raw", "decoded"))
    expected = decoding.decode(raw.numpy(), scenes.plan(), scenes.SIDE, scenes.SIDE)
    np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-5)
    # Of a prepared tensor the boxes are in its own pixels; its letterbox takes them to the image.
    in_square = boxes_of(outputs(daemon.post("/v2/models/shapes/infer", json={"inputs": [tensor]})))
    letterbox = Letterbox(scenes.WIDTH, scenes.HEIGHT, scenes.SIDE)
    np.testing.assert_allclose(letterbox.to_original(in_square.numpy()), boxes_of(everything), rtol=1e-3, atol=0.05)


def test_the_metadata_describe_a_detector(daemon: Daemon, first: dict[str, Any]) -> None:
    described = daemon.get("/v2/models/shapes").json()
    assert described["inputs"][0]["shape"] == [-1, 3, scenes.SIDE, scenes.SIDE]
    by_name = {output["name"]: output for output in described["outputs"]}
    assert list(by_name) == [*BOXES, "raw", "decoded"]
    assert by_name["class_ids"]["parameters"]["classes"] == list(scenes.NAMES)
    assert by_name["raw"]["shape"] == [-1, 2 * (16 * 16 + 8 * 8), 8]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"parameters": {"confidence": 2}}, "parameter confidence has value 2; choose 0 to 1"),
        ({"parameters": {"priority": 1, "iou": "high"}}, "parameter iou has value 'high'; choose 0 to 1"),
        ({"outputs": [{"name": "logits"}]}, "request 'boxes' or 'scores' or"),
    ],
)
def test_wrong_requests_are_answered_with_a_reason(
    daemon: Daemon, first: dict[str, Any], detection_task: DetectionTask, body: dict[str, Any], reason: str
) -> None:
    answer = daemon.infer(min((detection_task.test / "images").iterdir()), model="shapes", **body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]


def test_the_example_of_the_page_runs(
    daemon: Daemon, first: dict[str, Any], detection_task: DetectionTask, tmp_path: Path
) -> None:
    text = PAGE.read_text().split("In Python, with nothing to install:\n\n")[1]
    code = textwrap.dedent("".join(itertools.takewhile(lambda line: line.startswith("    "), text.splitlines(True))))
    code = code.replace("http://127.0.0.1:8080", daemon.status()["address"]).replace(
        "/models/shelf/", "/models/shapes/"
    )
    image = min((detection_task.test / "images").iterdir())
    (tmp_path / "photo.jpg").write_bytes(image.read_bytes())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = outputs(daemon.infer(image, model="shapes"))
    assert done.stdout.splitlines() == [
        f"{name} {round(score, 2)} {found['boxes']['data'][4 * index : 4 * index + 4]}"
        for index, (name, score) in enumerate(zip(found["names"]["data"], found["scores"]["data"], strict=True))
    ]
    assert len(done.stdout.splitlines()) == found["counts"]["data"][0] > 0


def test_the_report_names_a_detectors_figures(daemon: Daemon, first: dict[str, Any]) -> None:
    report = first["report"]
    assert report["task"] == "detection"
    assert report["agreement"] >= 80
    assert report["boxes"]["fp32"] > 0
    assert report["fp32"].keys() == report["quantized"].keys() == report["drop"].keys() == {"map50", "map50_95"}
    written = json.loads((daemon.state / "models" / "shapes" / "current" / "report.json").read_text())
    assert written["totals"]["fp32"] == report["fp32"]
    for precision in ("fp32", "quantized"):
        for key, overlap in (("map50", "0.5"), ("map50_95", "0.5:0.95")):
            line = f'edged_model_map_ratio{{iou="{overlap}",model="shapes",precision="{precision}"}}'
            assert daemon.metric(line) == pytest.approx(report[precision][key] / 100)
    assert daemon.metric('edged_model_agreement_ratio{model="shapes"}') == pytest.approx(report["agreement"] / 100)
    assert daemon.metric('edged_model_accuracy_ratio{model="digits",precision="fp32"}') > 0.5
    assert "cannot export its values" not in daemon.log.read_text()


def test_each_is_updated_while_the_other_serves(
    daemon: Daemon, first: dict[str, Any], task: Task, detection_task: DetectionTask
) -> None:
    digit = next(task.test.rglob("*.png"))
    picture = min((detection_task.test / "images").iterdir())
    for changing, checkpoint, other, image in (
        ("shapes", detection_task.second, "digits", digit),
        ("digits", task.second, "shapes", picture),
    ):
        before = daemon.generation(other)
        answers: list[tuple[int, str]] = []
        done = threading.Event()

        def ask(
            image: Path = image,
            other: str = other,
            answers: list[tuple[int, str]] = answers,
            done: threading.Event = done,
        ) -> None:
            while not done.is_set():
                answer = daemon.infer(image, model=other)
                answers.append((answer.status_code, answer.json().get("model_version")))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            update = daemon.put_live(checkpoint, model=changing)
        finally:
            done.set()
            asking.join()
        assert update["generation"] == daemon.generation(changing) == 2
        assert daemon.generation(other) == before
        assert set(answers) == {(200, str(before))}
    assert outputs(daemon.infer(picture, model="shapes"))["counts"]["shape"] == [1]
    assert daemon.infer(digit).json()["model_version"] == "2"


def test_a_restart_serves_a_detector_without_its_checkpoint(
    daemon: Daemon, first: dict[str, Any], detection_task: DetectionTask
) -> None:
    picture = min((detection_task.test / "images").iterdir())
    before = daemon.infer(picture, model="shapes").json()
    daemon.await_no_claims()
    assert daemon.stop() == 0
    assert not list(daemon.state.rglob("*.pt"))
    daemon.start()
    after = daemon.infer(picture, model="shapes").json()
    assert after["model_version"] == before["model_version"]
    found, expected = ({o["name"]: o for o in answer["outputs"]} for answer in (after, before))
    assert found["names"] == expected["names"]
    torch.testing.assert_close(boxes_of(found), boxes_of(expected), rtol=1e-3, atol=0.05)


def save_other(path: Path, name: str) -> Path:
    """Write a checkpoint whose model is of another class, or holds a block of one."""
    with classes_of_yolov5(name) as classes:
        whole = pickled(tiny_model(scenes.plan()), scenes.plan(), classes)
        if name.startswith("models.common."):
            whole.model.add_module("10", classes[name]())
        else:
            whole = classes[name]()
        torch.save({"epoch": -1, "model": whole, "ema": None}, path)
    return path


def save_half(path: Path) -> Path:
    whole = save_tiny(path, tiny_model(scenes.plan()), scenes.plan()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def save_onnx(path: Path) -> Path:
    path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x061.12.0" + bytes(100))  # version, producer and its version
    return path


def save_with_yaml(**changes: Any) -> Callable[[Path], Path]:
    def save(path: Path) -> Path:
        return save_tiny(path, tiny_model(scenes.plan()), scenes.plan(), yaml=yaml_of(scenes.plan(), **changes))

    return save


BAD: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "seg.pt": (
        lambda path: save_other(path, "models.yolo.SegmentationModel"),
        "unsafe_checkpoint",
        "it is a YOLOv5 segmentation model",
    ),
    "cls.pt": (
        lambda path: save_other(path, "models.yolo.ClassificationModel"),
        "unsafe_checkpoint",
        "it is a YOLOv5 classification model",
    ),
    "yolov8n.pt": (
        lambda path: save_other(path, "ultralytics.nn.tasks.DetectionModel"),
        "unsafe_checkpoint",
        "it is a YOLOv8 or later model",
    ),
    "c3x.pt": (
        lambda path: save_other(path, "models.common.C3x"),
        "unsafe_checkpoint",
        "a block that edged does not know .*'models.common.C3x'",
    ),
    "exported.pt": (save_onnx, "checkpoint", "it is an ONNX file, which holds no training checkpoint"),
    "half.pt": (save_half, "checkpoint", "cut off or damaged; copy it again"),
    "classes.pt": (save_with_yaml(nc=4), "architecture", "the file has 3 names, 4 classes"),
    "width.pt": (
        save_with_yaml(width_multiple=0.75),
        "architecture",
        r"needs tensor 'model\.0\.conv\.weight' of shape",
    ),
}


# One of each code; the others run slow, because the units of edged.models reject all of them without a daemon.
FAST = ("seg.pt", "half.pt", "width.pt")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BAD])
def test_a_bad_detector_is_rejected_with_a_reason(
    daemon: Daemon, first: dict[str, Any], detection_task: DetectionTask, name: str
) -> None:
    make, code, reason = BAD[name]
    source = make(daemon.folder / name)
    live = daemon.generation("shapes")
    daemon.drop(source, model="shapes")
    update = daemon.update_of(name)
    assert (update["state"], update["code"]) == ("REJECTED", code), update
    assert name in update["reason"]
    assert "\n" not in update["reason"]
    assert re.search(reason, update["reason"]), update["reason"]
    told = json.loads((daemon.state / "rejected" / update["sha256"] / "reason.json").read_text())
    assert (told["file_name"], told["code"], told["reason"]) == (name, code, update["reason"])
    events = daemon.get(f"/edged/v1/updates/{update['id']}").json()["events"]
    assert events[-1]["state"] == "REJECTED"
    assert daemon.generation("shapes") == live
    assert daemon.infer(min((detection_task.test / "images").iterdir()), model="shapes").status_code == 200


def test_no_traceback_reaches_the_log(daemon: Daemon, first: dict[str, Any]) -> None:
    assert "Traceback" not in daemon.log.read_text()
