"""Bits for each layer through the daemon: chosen within the limit, served by each engine, shown wherever bits are."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edged.artifacts.reader import read_artifact
from edged.artifacts.weights import load_weights, stored_bytes
from edged.models.layers import quantizable_layers
from edged.models.loading import load_checkpoint
from tests.support import trained
from tests.support.daemon import Daemon, edged, running
from tests.support.executions import relative_error
from tests.support.tasks import Task

# The engines that are here, each with a model of its own; TensorRT needs its device.
ENGINES = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def limit(task: Task) -> int:
    """Return the bytes of an artifact with three bits in all layers."""
    model = load_checkpoint(task.first).model
    return stored_bytes(model.state_dict(), {f"{name}.weight": 3 for name in quantizable_layers(model)})


@pytest.fixture(scope="module")
def daemon(task: Task, limit: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    shared: dict[str, Any] = {
        "calibration": {"dir": str(task.calibration), "images": 80},
        "input": {"size": 8, "resize": 8},
        "quantization": {"recipe": "fast", "bits": "auto", "size_limit": limit, "activation_bits": 8},
    }
    models = [{**shared, "name": engine, "runtime": engine} for engine in ENGINES]
    with running(tmp_path_factory.mktemp("bits"), task.calibration, models=models) as daemon:
        for engine in ENGINES:
            daemon.put_live(task.first, f"{engine}.pt", model=engine)
        yield daemon


def bits_of(folder: Path) -> dict[str, int]:
    return {layer["name"]: layer["bits"] for layer in read_artifact(folder).report["layers"]}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_serves_the_chosen_bits(daemon: Daemon, task: Task, limit: int, engine: str) -> None:
    folder = daemon.state / "models" / engine / "current"
    assert (folder / "weights.safetensors").stat().st_size <= limit
    assert len(set(bits_of(folder).values())) > 1
    artifact = read_artifact(folder)
    weights, _ = load_weights(folder / "weights.safetensors")
    assert {name.removesuffix(".weight"): weight.bits for name, weight in weights.items()} == bits_of(folder)
    images = sorted(task.test.rglob("*.png"))[:40]
    answer = daemon.infer(*images, model=engine)
    (output,) = answer.json()["outputs"]
    served = torch.tensor(output["data"]).reshape(output["shape"])
    assert daemon.get(f"/v2/models/{engine}").json()["platform"] == f"edged_{engine}"
    indices = [int(path.stem) for path in images]
    inputs = torch.from_numpy(trained.normalize(task.digits.images[indices], artifact.input))
    assert relative_error(served, artifact.load_model()(inputs)) < 0.05  # engines round codes otherwise
    assert float((served.argmax(1) == torch.from_numpy(task.digits.labels[indices])).float().mean()) > 0.9


def test_status_and_its_page_show_the_bits_of_each_layer(daemon: Daemon) -> None:
    expected = bits_of(daemon.state / "models" / ENGINES[0] / "current")
    assert daemon.status()["models"][0]["bits"] == "auto"
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th><td>(\d)</td>', daemon.get("/").text)
    assert dict(rows[: len(expected)]) == {name: str(bits) for name, bits in expected.items()}


def test_the_report_shows_the_bits_and_what_they_cost(daemon: Daemon) -> None:
    update = next(each for each in daemon.updates() if each["model"] == ENGINES[0])
    folder = daemon.state / "models" / ENGINES[0] / "current"
    page = daemon.get(f"/edged/v1/updates/{update['id']}/report").text
    assert "Error of the outputs by bytes of the weights; this artifact takes" in page
    assert page.count('<circle class="dot uniform"') == 7
    assert "Why these bits" in page
    code, found = edged(daemon, "report", str(update["id"]))
    assert code == 0
    chosen = found["report"]["chosen_bits"]
    assert {layer["name"]: layer["bits"] for layer in chosen["layers"]} == bits_of(folder)
    assert chosen["bytes"] == (folder / "weights.safetensors").stat().st_size
