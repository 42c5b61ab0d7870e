"""Which layers of a model are quantized."""

from __future__ import annotations

import copy

from torch import nn

from edged.calibration.geometry import QuantizableLayer


def quantizable_layers(model: nn.Module) -> dict[str, QuantizableLayer]:
    """The convolutions and linear layers by name, in registration order (a ResNet's order of execution)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are the model's own, to be replaced one by one."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
