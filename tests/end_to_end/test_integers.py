"""Models with quantized activations through the daemon: outputs are those of the evaluated model, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edged.artifacts.reader import read_artifact
from edged.pipeline.export import export
from tests.support import trained
from tests.support.daemon import Daemon, running
from tests.support.executions import relative_error, session
from tests.support.tasks import DetectionTask, Task


@pytest.fixture(scope="module")
def daemon(task: Task, detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A generation computes with two threads and in batches, the worker with one thread, image by image."""
    digits = {
        "name": "digits",
        "calibration": {"dir": str(task.calibration)},
        "input": {"size": 8, "resize": 8},
        "quantization": {"bits": 4, "activation_bits": 8},
        "batching": {"max_batch": 8, "max_delay_ms": 1},
    }
    shapes = {
        "name": "shapes",
        "calibration": {"dir": str(detection_task.calibration)},
        "input": {"size": 64},
        "quantization": {"bits": 8, "activation_bits": 8, "method": "rtn"},
    }
    folder = tmp_path_factory.mktemp("integers")
    with running(folder, task.calibration, models=[digits, shapes], serve={"threads": 2}) as daemon:
        yield daemon


def totals_of(daemon: Daemon, model: str) -> dict[str, Any]:
    totals: dict[str, Any] = json.loads((daemon.state / "models" / model / "current" / "report.json").read_text())[
        "totals"
    ]
    return totals


def test_a_classifier_serves_what_was_evaluated(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    daemon.put_live(task.first)
    totals = totals_of(daemon, "digits")
    assert totals["activation_bits"] == 8
    assert totals["agreement"] > 90
    images = sorted(task.test.rglob("*.png"))[:40]
    (output,) = daemon.infer(*images).json()["outputs"]
    served = torch.tensor(output["data"]).reshape(output["shape"])
    folder = daemon.state / "models" / "digits" / "current"
    artifact = read_artifact(folder)
    indices = [int(path.stem) for path in images]
    inputs = trained.normalize(task.digits.images[indices], artifact.input)
    (computed,) = session((folder / "model.onnx").read_bytes()).run(None, {"input": inputs})
    assert torch.equal(served, torch.from_numpy(computed))
    assert relative_error(served, artifact.load_model()(torch.from_numpy(inputs))) < 0.01
    assert float((served.argmax(1) == torch.from_numpy(task.digits.labels[indices])).float().mean()) > 0.9

    export(folder, tmp_path / "digits.onnx", dynamic_batch=True)
    (logits,) = session((tmp_path / "digits.onnx").read_bytes()).run(None, {"input": inputs})
    assert torch.equal(torch.from_numpy(logits), served)


def test_a_detector_finds_boxes(daemon: Daemon, detection_task: DetectionTask) -> None:
    daemon.put_live(detection_task.first, model="shapes")
    assert totals_of(daemon, "shapes")["activation_bits"] == 8
    image = sorted((detection_task.test / "images").iterdir())[0]
    found = json.loads(daemon.infer(image, model="shapes").content)["outputs"]
    assert found[-1]["data"] != [0]
