"""A checkpoint and a folder of images to an artifact folder, without a daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from edged.artifacts.reader import read_artifact
from edged.errors import CalibrationError, GateError, StateError
from edged.evaluation.gates import Gates
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.quantize import quantize
from edged.spec import Method, QuantSpec
from tests.support.tasks import Task

RTN = QuantSpec(method=Method.RTN, bits=8)


class Listener:
    """Notes the stages that are entered."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield

    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def planned(self, plan: Mapping[str, Any]) -> None:
        assert plan["peak_bytes"] > 0


@pytest.fixture
def network(task: Task) -> LoadedNetwork:
    return load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})


def test_a_checkpoint_becomes_an_artifact(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    listener = Listener()
    result = quantize(network, task.calibration, tmp_path / "out", RTN, device="cpu", listener=listener)
    assert [name for name in listener.names if name in ("calibrate", "quantize", "evaluate", "write")] == [
        "calibrate",
        "quantize",
        "evaluate",
        "write",
    ]
    artifact = read_artifact(result.artifact)
    assert artifact.report == result.report
    assert artifact.manifest.source == network.source.to_dict()
    assert artifact.manifest.quantization == RTN.to_dict()
    assert (artifact.manifest.name, artifact.manifest.started_at) == ("", "")
    assert result.report["totals"]["agreement"] > 80
    torch.testing.assert_close(network.model.state_dict(), before, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_path_gives_the_same_weights_as_the_loaded_network(task: Task, tmp_path: Path) -> None:
    first, again = (
        quantize(checkpoint, task.calibration, tmp_path / name, RTN, images=64, cache_root=tmp_path / "cache")
        for checkpoint, name in ((str(task.first), "path"), (load_checkpoint(task.first), "network"))
    )
    assert first.report["layers"] == again.report["layers"]
    digests = {read_artifact(result.artifact).manifest.weights["sha256"] for result in (first, again)}
    assert len(digests) == 1


def test_an_existing_folder_is_refused_before_the_work(task: Task, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="it already exists"):
        quantize(tmp_path / "missing.pt", task.calibration, tmp_path)


def test_a_gate_that_is_not_passed_leaves_nothing(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"gates\.min_agreement is 100\.1 %"):
        quantize(network, task.calibration, tmp_path / "out", RTN, gates=Gates(min_agreement=100.1))
    assert not list(tmp_path.iterdir())


def test_a_gate_that_needs_labels_is_refused_before_the_work(
    task: Task, network: LoadedNetwork, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    for index in range(40):
        task.digits.png(index, flat / f"{index}.png")
    listener = Listener()
    with pytest.raises(CalibrationError, match=r"gates\.max_drop needs labels"):
        quantize(network, flat, tmp_path / "out", RTN, gates=Gates(max_drop=1.0), listener=listener)
    assert "quantize" not in listener.names
