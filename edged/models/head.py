"""The modules of heads of several layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edged.models.head_description import CONCAT_POOL, LINEAR

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class ConcatPool(nn.Module):
    """The largest value of each map, then the mean of each, as fastai's AdaptiveConcatPool2d."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to [batch, 2 channels, 1, 1]."""
        return torch.cat((x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)), 1)


def pool_of(head: Sequence[str]) -> nn.Module:
    """Build the pooling before a head: the mean of each map, or what the head asks for."""
    return ConcatPool() if head[:1] == (CONCAT_POOL,) else nn.AdaptiveAvgPool2d(1)


def head_of(head: Sequence[str], features: int, num_classes: int) -> nn.Module:
    """Build a head: a Sequential of its layers, or the one linear layer that it is.

    Args:
        head: Layers that `checked_head` has passed; empty for one linear layer with a bias.
        features: Channels of the maps that the body outputs.
        num_classes: Outputs of the last linear layer.
    """
    if not head:
        return nn.Linear(features, num_classes)
    width = features
    layers: list[nn.Module] = []
    for layer in head:
        if layer == CONCAT_POOL:
            width *= 2
        elif match := LINEAR.fullmatch(layer):
            layers.append(nn.Linear(width, int(match[1]), bias=not match[2]))
            width = int(match[1])
        else:
            layers.append(nn.BatchNorm1d(width) if layer == "batchnorm" else _ACTIVATIONS[layer]())
    return layers[0] if len(head) == 1 else nn.Sequential(*layers)
