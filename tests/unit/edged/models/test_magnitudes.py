"""Weights that no training leaves are found, those of networks are not."""

from __future__ import annotations

import struct

import pytest
import torch

from edged.models.checkpoint import read_checkpoint
from edged.models.magnitudes import implausible_value
from edged.models.resnet import CifarResNet
from tests.support.tasks import DetectionTask, Task


def flipped(value: float, form: str, bit: int) -> float:
    """Return a float with one bit flipped; `form` is struct's letter of its type."""
    integer = {"f": "I", "e": "H"}[form]
    (bits,) = struct.unpack(integer, struct.pack(form, value))
    return float(struct.unpack(form, struct.pack(integer, bits ^ 1 << bit))[0])


@pytest.mark.parametrize(("form", "bit"), [("f", 30), ("e", 14)])
def test_a_flipped_exponent_bit_is_found_with_its_tensor_and_value(form: str, bit: int) -> None:
    torch.manual_seed(0)
    state = {"a": torch.randn(64, 32, 3, 3) / 20, "b": torch.randn(64)}
    assert implausible_value(state) is None
    value = flipped(-0.01, form, bit)
    state["a"][3, 1, 2, 2] = value
    text = implausible_value(state)
    assert text is not None
    assert text.startswith(f"tensor 'a' holds the value {float(torch.tensor(value)):.3g}")


def test_the_largest_of_several_is_named() -> None:
    state = {"a": torch.full((3,), 1e16), "b": torch.tensor(-1e30), "c": torch.full((2, 2), 3e15)}
    assert implausible_value(state) == "tensor 'b' holds the value -1e+30; so do 2 other tensors"
    del state["c"]
    assert implausible_value(state) == "tensor 'b' holds the value -1e+30; so does another tensor"


def test_large_values_among_their_like_are_plausible() -> None:
    state = {
        "variance": torch.tensor([1e-20, 1e9]),
        "scale": torch.tensor([1e5, 0.0]),
        "uniform": torch.full((10, 10), 1e6),
        "sparse": torch.zeros(100, 100),
        "dead": torch.full((64, 64), 1e-30),
        "one": torch.tensor([[5e6]]),
        "count": torch.tensor(10**18),
    }
    state["sparse"][0] = 150.0
    state["dead"][:8] = torch.randn(8, 64)
    assert implausible_value(state) is None


def test_networks_are_plausible(task: Task, detection_task: DetectionTask) -> None:
    for path in (task.first, task.second, detection_task.first):
        assert implausible_value(read_checkpoint(path).state) is None
    assert implausible_value(CifarResNet(3).state_dict()) is None
    assert implausible_value({name: 0 * value for name, value in CifarResNet(3).state_dict().items()}) is None
