"""A checkpoint file as a network that runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edged.errors import ArchitectureError, CheckpointError, UsageError
from edged.models.checkpoint import read_checkpoint
from edged.models.loading import load_checkpoint
from tests.support.tasks import Task

SIZE = {"size": 8, "resize": 8}


def test_a_network_comes_with_its_architecture_input_and_source(task: Task) -> None:
    network = load_checkpoint(str(task.first), "cifar_resnet20", input_settings=SIZE)
    checkpoint = read_checkpoint(task.first)
    assert (network.architecture.name, network.input.size) == ("cifar_resnet20", 8)
    source = {"sha256": checkpoint.sha256, "bytes": checkpoint.file_bytes, "name": task.first.name}
    assert network.source.to_dict() == {**source, "format": "torch-zip"}
    loaded = network.model.state_dict()
    for name, value in checkpoint.state.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)
    inputs, labels = task.digits.tensors(slice(1500, None))
    assert (network.model(inputs).argmax(1) == labels).float().mean() > 0.9


def test_messages_have_the_name_that_the_user_knows_once(task: Task, tmp_path: Path) -> None:
    bad = tmp_path / "claimed"
    bad.write_bytes(b"this is no checkpoint")
    with pytest.raises(CheckpointError, match=r"^claimed: it is a text file"):
        load_checkpoint(bad)
    with pytest.raises(CheckpointError, match=r"^mine\.pt: it is a text file"):
        load_checkpoint(bad, name="mine.pt")
    with pytest.raises(ArchitectureError, match=r"^mine\.pt: the file holds a cifar_resnet20, not the resnet18"):
        load_checkpoint(task.first, "resnet18", name="mine.pt")


def test_an_input_that_the_network_cannot_read_is_refused(task: Task) -> None:
    with pytest.raises(UsageError, match="give one value a channel"):
        load_checkpoint(task.first, input_settings={"mean": [0.5], "std": [0.5]})
