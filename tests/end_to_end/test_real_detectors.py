"""Genuine YOLOv5 checkpoints, dropped one after another, go live and see what is there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from edged.calibration.yolo_labels import parse_labels
from edged.models.nms import pairwise_iou
from tests.support.daemon import Daemon, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

# Model, checkpoint, classes, input size. The fixtures were trained on images that are not there: their boxes in COCO's
# pictures are few, so that only going live and answering is asked of them.
MODELS = [
    ("coco", "yolov5n.pt", 80, 640),
    ("face", "fixtures/custom_yolov5n_v6_nc1_face.pt", 1, 320),
    ("animals", "fixtures/custom_yolov5n_v7_nc3_animals.pt", 3, 320),
]

UPDATE_S = 700


def configured(data: Path) -> list[dict[str, Any]]:
    common = {"quantization": {"bits": 8, "recipe": "fast"}, "gates": {"min_agreement": 40}}
    images = {"dir": str(data / "coco" / "calib")}
    return [
        {"name": name, "calibration": images, "input": {"size": size}, "arch": "yolov5n", **common}
        for name, _, _, size in MODELS
    ]


def test_genuine_detectors_go_live(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, real_data, models=configured(real_data)) as daemon:
        for name, file, classes, _ in MODELS:
            daemon.drop(real_data / "weights" / file, model=name)
            update = daemon.update_of(Path(file).name, timeout_s=UPDATE_S)
            assert update["state"] == "COMMITTED", update
            with capsys.disabled():
                show(name, update)
            described = daemon.get(f"/v2/models/{name}").json()
            (ids,) = [output for output in described["outputs"] if output["name"] == "class_ids"]
            assert len(ids["parameters"]["classes"]) == classes
        check_boxes(daemon, real_data)
        bad = real_data / "weights" / "fixtures" / "yolov5n_variant_c3x_dwconvtranspose_nc80.pt"
        daemon.drop(bad, model="coco")
        update = daemon.update_of(bad.name)
        assert (update["state"], update["code"]) == ("REJECTED", "unsafe_checkpoint")
        assert "'models.common.C3x'" in update["reason"]
        assert daemon.generation("coco") == 1


def check_boxes(daemon: Daemon, data: Path) -> None:
    """Most of the large things in the first images are found where their labels say, in the original's pixels."""
    right = there = 0
    for path in sorted((data / "coco" / "val" / "images").iterdir())[:24]:
        found = daemon.infer(path, model="coco").json()["outputs"]
        boxes, _, ids, names, _ = (output["data"] for output in found)
        width, height = Image.open(io.BytesIO(path.read_bytes())).size
        seen = torch.tensor(boxes).reshape(-1, 4)
        assert bool((seen >= 0).all())
        assert bool((seen <= torch.tensor([width, height, width, height])).all())
        assert len(ids) == len(names) == len(seen)
        text = path.parent.parent / "labels" / f"{path.stem}.txt"
        truth = parse_labels(text.read_text() if text.is_file() else "", text.name)
        pixels = truth.in_pixels(width, height)
        large = (pixels[:, 2] - pixels[:, 0]) * (pixels[:, 3] - pixels[:, 1]) > 96**2
        same = torch.tensor(ids, dtype=torch.int64)[:, None] == truth.classes[large][None]
        hits = (pairwise_iou(seen.numpy(), pixels[large].numpy()) > 0.5) & same.numpy()
        right, there = right + int(hits.any(0).sum()), there + int(large.sum())
    assert there > 20
    assert right > 0.6 * there


def show(name: str, update: dict[str, Any]) -> None:
    report = update["report"]
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in update["stages"].items())
    figures = {key: report.get(key) for key in ("agreement", "boxes", "fp32", "quantized")}
    print(f"\n{name}: {figures}, worker peak {report['peak_memory_bytes'] / 2**20:.0f} MiB\n  seconds: {stages}")


def test_the_command_line_measures_map(real_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli.main", "evaluate", str(real_data / "weights" / "yolov5n.pt")]
    command += ["--data", str(real_data / "coco" / "val"), "--cache", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    scores = json.loads(done.stdout)
    assert (scores["images"], scores["boxes"]) == (128, 898)
    assert scores["map50"] == pytest.approx(53.0, abs=1.0)
    assert scores["map50_95"] == pytest.approx(34.0, abs=0.2)
