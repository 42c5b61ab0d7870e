"""Heads of several layers: their description as text that a manifest can hold, and their modules.

A head is a tuple of layers in order, in the words of `edged.spec.HEAD_LAYERS`. A linear layer has its outputs and
whether it has a bias: "linear:256" or "linear:256:nobias".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edged.errors import ArchitectureError
from edged.spec import HEAD_LAYERS, IDLE_LAYERS, MAX_HEAD_LAYERS

MAX_OUTPUTS = 100_000
CONCAT_POOL = "concat_pool"
_LINEAR = re.compile(r"linear:(\d{1,6})(:nobias)?")
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
        elif match := _LINEAR.fullmatch(layer):
            layers.append(nn.Linear(width, int(match[1]), bias=not match[2]))
            width = int(match[1])
        else:
            layers.append(nn.BatchNorm1d(width) if layer == "batchnorm" else _ACTIVATIONS[layer]())
    return layers[0] if len(head) == 1 else nn.Sequential(*layers)


def linear(outputs: int, bias: bool) -> str:
    """Return the description of a linear layer."""
    return f"linear:{outputs}" if bias else f"linear:{outputs}:nobias"


def checked_head(head: Sequence[object], num_classes: int) -> None:
    """Check that a head is one that `head_of` builds.

    Args:
        head: Layers; empty for one linear layer.
        num_classes: Outputs of the last linear layer.

    Raises:
        ArchitectureError: A layer is unknown, or the outputs are others than the classes.
    """
    known = {*HEAD_LAYERS} - {*IDLE_LAYERS, "linear"}
    widths = []
    for index, layer in enumerate(head):
        match = _LINEAR.fullmatch(layer) if isinstance(layer, str) else None
        if match and 1 <= int(match[1]) <= MAX_OUTPUTS:
            widths.append(int(match[1]))
        elif layer not in known or (layer == CONCAT_POOL and index):
            raise ArchitectureError(f"head has the layer {layer!r:.80}, which edged does not know")
    if head and (widths[-1:] != [num_classes] or len(head) > MAX_HEAD_LAYERS):
        raise ArchitectureError(f"head has {widths[-1:]} outputs in {len(head)} layers, for {num_classes} classes")
