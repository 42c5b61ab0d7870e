"""A network whose BatchNorm factors are all positive, computing the same.

An engine scales integer sums by the weight's scale times the BatchNorm's factor, and takes no negative scales.
Negating a channel's weights and its BatchNorm's factor and mean changes nothing:

    gamma (W x - mean) / std + beta  =  (-gamma) ((-W) x - (-mean)) / std + beta
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edged.models.graph import Program
from edged.models.layers import quantizable_layers, shared_copy


def with_positive_scales(model: nn.Module) -> nn.Module:
    """Return the network with the channels negated whose BatchNorm factor is negative.

    Args:
        model: Network in eval mode. Not modified; unchanged tensors are shared.
    """
    changed = shared_copy(model)
    modules, layers = dict(changed.named_modules()), quantizable_layers(changed)
    for name, follower in Program(model).followers.items():
        norm = modules[follower]
        if not isinstance(norm, nn.BatchNorm2d) or norm.weight is None or not bool((norm.weight < 0).any()):
            continue
        sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0)
        layer = layers[name]
        layer.weight = _parameter(layer.weight * sign.view(-1, *(1,) * (layer.weight.dim() - 1)))
        if layer.bias is not None:
            layer.bias = _parameter(layer.bias * sign)
        norm.weight = _parameter(norm.weight * sign)
        if norm.running_mean is not None:
            norm.running_mean = norm.running_mean * sign
    return changed


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)
