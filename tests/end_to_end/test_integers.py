"""Models with quantized activations through the daemon: outputs are those of the evaluated model, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edged.artifacts.manifest import SCHEMA_OF_LEVELS
from edged.artifacts.reader import read_artifact
from edged.pipeline.export import export
from tests.support import trained
from tests.support.daemon import Daemon, running
from tests.support.executions import relative_error, session
from tests.support.outliers import write_outlier
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
    either = {
        "name": "either",
        "calibration": {"dir": str(task.calibration), "images": 80},
        "input": {"size": 8, "resize": 8},
        "quantization": {"bits": 8, "activation_bits": "auto", "method": "rtn"},
        "gates": {"min_agreement": 90},
        "runtime": "auto",
    }
    stored = {
        "name": "stored",
        "calibration": {"dir": str(task.calibration), "images": 80},
        "input": {"size": 8, "resize": 8},
        "quantization": {"recipe": "fast", "bits": 4, "method": "requant", "levels": "power"},
    }
    folder = tmp_path_factory.mktemp("integers")
    models = [digits, shapes, either, stored]
    with running(folder, task.calibration, models=models, serve={"threads": 2}) as daemon:
        yield daemon


def assert_the_chosen_one_serves(daemon: Daemon, task: Task) -> dict[str, Any]:
    """Check that requests are computed by the chosen candidate, and return it."""
    (chosen,) = [each for each in totals_of(daemon, "either")["candidates"] if each["chosen"]]
    folder = daemon.state / "models" / "either" / "current"
    artifact = read_artifact(folder)
    assert artifact.manifest.serve == {"engine": chosen["engine"], "precision": chosen["precision"]}
    assert (artifact.activations is None) == (chosen["precision"] == "float")
    metadata = daemon.get("/v2/models/either").json()
    assert metadata["platform"] == f"edged_{chosen['engine']}"
    images = sorted(task.test.rglob("*.png"))[:20]
    (output,) = daemon.infer(*images, model="either").json()["outputs"]
    served = torch.tensor(output["data"]).reshape(output["shape"])
    inputs = trained.normalize(task.digits.images[[int(path.stem) for path in images]], artifact.input)
    (computed,) = session((folder / "model.onnx").read_bytes()).run(None, {"input": inputs})
    same = chosen["engine"] == "onnxruntime" or chosen["precision"] == "float"
    tolerance = 1e-5 if same else 0.05  # engines round codes otherwise
    assert relative_error(served, torch.from_numpy(computed)) < tolerance
    return chosen


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


def test_the_fastest_candidate_goes_live(daemon: Daemon, task: Task) -> None:
    daemon.put_live(task.first, "either.pt", model="either")
    chosen = assert_the_chosen_one_serves(daemon, task)
    totals = totals_of(daemon, "either")
    candidates = totals["candidates"]
    assert {(each["engine"], each["precision"]) for each in candidates} >= {
        ("onnxruntime", "integer"),
        ("onnxruntime", "float"),
        ("torch", "float"),
    }
    assert all(each["ms"] > 0 and each["refused"] is None for each in candidates)
    assert chosen["ms"] < 1.06 * min(each["ms"] for each in candidates)
    assert chosen["agreement"] == totals["agreement"]
    assert totals["activation_bits"] == (8 if chosen["precision"] == "integer" else None)


def test_floats_go_live_where_integers_fail_a_gate(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    write_outlier(task.second, tmp_path / "outlier.pt")
    daemon.put_live(tmp_path / "outlier.pt", model="either")
    assert assert_the_chosen_one_serves(daemon, task)["precision"] == "float"
    integer = next(each for each in totals_of(daemon, "either")["candidates"] if each["precision"] == "integer")
    assert "gates.min_agreement is 90 %" in integer["refused"]


def test_codes_that_are_for_storage_are_served_in_float(daemon: Daemon, task: Task) -> None:
    update = daemon.put_live(task.first, "stored.pt", model="stored")
    folder = daemon.state / "models" / "stored" / "current"
    artifact = read_artifact(folder)
    assert (artifact.manifest.schema_version, artifact.activations) == (SCHEMA_OF_LEVELS, None)
    images = sorted(task.test.rglob("*.png"))[:20]
    (output,) = daemon.infer(*images, model="stored").json()["outputs"]
    served = torch.tensor(output["data"]).reshape(output["shape"])
    inputs = trained.normalize(task.digits.images[[int(path.stem) for path in images]], artifact.input)
    assert relative_error(served, artifact.load_model()(torch.from_numpy(inputs))) < 1e-5
    page = daemon.get(f"/edged/v1/updates/{update['id']}/report").text
    assert "power, for storage only: computed in float" in page
