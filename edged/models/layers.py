"""The layers of a model that are quantized, and the ownership of its tensors."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edged.calibration.geometry import QuantizableLayer


def quantizable_layers(model: nn.Module) -> dict[str, QuantizableLayer]:
    """Return the convolutions and linear layers by name, in registration order (a ResNet's order of execution)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy that shares the parameters and buffers of `model`; they can be replaced one by one."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def own_memory(model: nn.Module) -> nn.Module:
    """Copy all parameters and buffers of `model`, in place, convolutions in channels-last layout, and return it.

    As long as a single tensor refers to a mapped checkpoint, all pages of the file that were read count as in use.
    """
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            layout = torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
            parameter.data = parameter.detach().clone(memory_format=layout)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.clone())
    return model
