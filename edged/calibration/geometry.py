"""Geometry of a layer's input: the columns that its weight matrix multiplies."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

QuantizableLayer = nn.Conv2d | nn.Linear
Geometry = tuple[object, ...]


def geometry_of(layer: QuantizableLayer) -> Geometry:
    """Return a key that is equal for two layers exactly if the same input gives both the same columns."""
    if isinstance(layer, nn.Linear):
        return ("linear",)
    return (layer.kernel_size, layer.stride, _padding(layer), layer.dilation, layer.groups, layer.padding_mode)


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Return whether the inputs themselves are the columns: a 1x1 convolution without padding or conv groups."""
    return layer.kernel_size == (1, 1) and layer.groups == 1 and not any(_padding(layer))


def is_same_3x3(layer: nn.Conv2d) -> bool:
    """Return whether the layer is a plain 3x3 convolution of stride 1 whose zero padding keeps the map's size."""
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and _padding(layer) == (1, 1, 1, 1)
        and layer.padding_mode == "zeros"
    )


def positions_of(layer: QuantizableLayer, x: Tensor) -> int:
    """Return the number of columns per image of the inputs x, [b, C, H, W] or [b, ..., d]."""
    if isinstance(layer, nn.Linear):
        return x[0].numel() // x.shape[-1]
    left, right, top, bottom = _padding(layer)
    sides = (x.shape[2] + top + bottom, x.shape[3] + left + right)
    return math.prod(
        (side - dilation * (kernel - 1) - 1) // stride + 1
        for side, kernel, stride, dilation in zip(sides, layer.kernel_size, layer.stride, layer.dilation, strict=True)
    )


def strided(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the pixels of x [b, C, H, W] that a pointwise convolution reads, as a view."""
    vertical, horizontal = layer.stride
    return x[:, :, ::vertical, ::horizontal]


def padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Pad inputs x [b, C, H, W] as the layer does."""
    return functional.pad(x, _padding(layer), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def conv_columns(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Unfold the patches that a convolution multiplies, such that W @ columns == conv(x) for each conv group.

    Args:
        layer: Convolution.
        x: Padded inputs [b, C, H, W]. Not modified.

    Returns:
        Patches [conv_groups, d, b * positions] with d = C / conv_groups * kh * kw, in the order of
        weight.reshape(rows, d).
    """
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    b, _, positions = patches.shape
    grouped = patches.reshape(b, layer.groups, -1, positions)
    return grouped.permute(1, 2, 0, 3).reshape(layer.groups, grouped.shape[2], b * positions)


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return the layer's padding in F.pad's order: left, right, top, bottom."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        vertical, horizontal = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    vertical, horizontal = (int(side) for side in layer.padding)
    return (horizontal, horizontal, vertical, vertical)
