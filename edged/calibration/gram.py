"""Input Grams G = X X^T of one layer, summed over batches, where X [d, n] holds the layer's inputs as columns.

Three ways to the same matrix:

- `DenseGram`: 1x1 convolutions and linear layers; one product of the inputs themselves.
- `UnfoldGram`: any convolution; one product of its patches per conv group.
- `LagGram`: stride-1 "same" convolutions, without patches. Block (o, o') of G holds
  sum_p x(p + o) x(p + o')^T over the output positions p, which depends on the lag o' - o alone, apart from the
  pixels that only positions outside the output would read. A 3x3 kernel has 13 lags up to transposition instead of
  81 blocks, and 16 products of edge rows, columns and corners correct them. That is also how the Gram is stored:
  29 C x C matrices instead of 81.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QuantizableLayer = nn.Conv2d | nn.Linear


class Gram(Protocol):
    """A Gram matrix under construction.

    Attributes:
        positions: Columns of X so far: images times output positions.
    """

    positions: int

    def update(self, x: Tensor) -> None:
        """Add a batch of layer inputs: [b, C, H, W] for a convolution, [b, ..., d] for a linear layer."""

    def matrix(self) -> Tensor:
        """X X^T of everything added so far, float32 [conv_groups, d, d]."""


def hessian(gram: Gram) -> Tensor:
    """H = 2/n X X^T, float32 [conv_groups, d, d], in squared input units."""
    return gram.matrix().mul_(2 / max(gram.positions, 1))


def gram_for(layer: QuantizableLayer) -> Gram:
    """The fastest Gram for a layer's geometry."""
    if isinstance(layer, nn.Linear):
        return DenseGram(layer.in_features)
    if layer.groups == 1 and layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid"):
        return DenseGram(layer.in_channels, stride=_pair(layer.stride))
    if layer.groups == 1 and is_same_3x3(layer):
        return LagGram(layer.in_channels)
    return UnfoldGram(layer)


def is_same_3x3(layer: nn.Conv2d) -> bool:
    """Whether the layer is a 3x3 convolution of stride 1 whose zero padding keeps the map's size."""
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.dilation == (1, 1)
        and layer.padding in ((1, 1), "same")
        and layer.padding_mode == "zeros"
    )


class DenseGram:
    """Gram of a linear layer or a 1x1 convolution: the inputs are the columns.

    Args:
        width: d.
        stride: Stride of the convolution, (vertical, horizontal).
    """

    def __init__(self, width: int, stride: tuple[int, int] = (1, 1)) -> None:
        self.positions = 0
        self._stride = stride
        self._sum = torch.zeros(width, width)

    def update(self, x: Tensor) -> None:
        """Add inputs [b, d, H, W] or [b, ..., d]."""
        if x.dim() == 4:
            x = x[:, :, :: self._stride[0], :: self._stride[1]].permute(0, 2, 3, 1)
        columns = x.reshape(-1, x.shape[-1]).float()
        self.positions += columns.shape[0]
        self._sum = self._sum.to(x.device).addmm_(columns.t(), columns)

    def matrix(self) -> Tensor:
        """X X^T, float32 [1, d, d]."""
        return self._sum[None].clone()


class UnfoldGram:
    """Gram of any convolution, from its patches.

    Args:
        layer: Gives geometry and conv groups; kept by reference, never run.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.positions = 0
        self._layer = layer
        width = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        self._sum = torch.zeros(layer.groups, width, width)

    def update(self, x: Tensor) -> None:
        """Add inputs [b, C, H, W]."""
        patches = conv_columns(self._layer, x.float())
        self.positions += patches.shape[2]
        self._sum = self._sum.to(x.device).baddbmm_(patches, patches.transpose(1, 2))

    def matrix(self) -> Tensor:
        """X X^T, float32 [conv_groups, d, d]."""
        return self._sum.clone()


class LagGram:
    """Gram of a 3x3 stride-1 convolution that keeps the map's size.

    Args:
        channels: C; d = 9 C.
    """

    def __init__(self, channels: int) -> None:
        self.positions = 0
        self._channels = channels
        # [lag or edge, C, C], see _LAGS and _edges
        self._sums = torch.zeros(len(_LAGS) + len(_EDGES), channels, channels)

    def update(self, x: Tensor) -> None:
        """Add inputs [b, C, H, W]."""
        # [H, W, b, C]: any run of pixels of one row is a contiguous [pixels * b, C] matrix.
        pixels = x.float().permute(2, 3, 0, 1).contiguous()
        self._sums = self._sums.to(x.device)
        self.positions += pixels.shape[0] * pixels.shape[1] * pixels.shape[2]
        for total, (dr, dc) in zip(self._sums, _LAGS, strict=False):
            _add_lag(total, pixels, dr, dc)
        for total, (side, lag) in zip(self._sums[len(_LAGS) :], _EDGES, strict=True):
            edge = _edge(pixels, side)
            _add_lag(total, edge, *((0, lag) if edge.shape[0] == 1 else (lag, 0)))

    def matrix(self) -> Tensor:
        """X X^T, float32 [1, d, d]."""
        C = self._channels
        out = self._sums.new_empty(C, 9, C, 9)
        for i, o in enumerate(_OFFSETS):
            for j, p in enumerate(_OFFSETS[i:], start=i):
                block = self._block(o, p)
                out[:, i, :, j] = block
                if i != j:
                    out[:, j, :, i] = block.t()
        return out.reshape(1, 9 * C, 9 * C)

    def _block(self, o: tuple[int, int], p: tuple[int, int]) -> Tensor:
        """sum over output positions q of x(q + o) x(q + p)^T [C, C], for o before p in reading order."""
        dr, dc = p[0] - o[0], p[1] - o[1]
        block = self._sums[_LAGS.index((dr, dc))]
        # Offset +1 never reads row 0 and offset -1 never reads the last row; columns likewise.
        rows = {1: ["top"], -1: ["bottom"]}.get(o[0], []) if dr == 0 else []
        columns = {1: ["left"], -1: ["right"]}.get(o[1], []) if dc == 0 else []
        for side in rows:
            block = block - self._edge_sum(side, dc)
        for side in columns:
            block = block - self._edge_sum(side, dr)
        if rows and columns:
            block = block + self._edge_sum(rows[0] + columns[0], 0)
        return block

    def _edge_sum(self, side: str, lag: int) -> Tensor:
        total = self._sums[len(_LAGS) + _EDGES.index((side, abs(lag)))]
        return total.t() if lag < 0 else total


_OFFSETS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
# Half of the 25 lags; the others are transposes.
_LAGS = [(dr, dc) for dr in range(3) for dc in range(-2, 3) if dr > 0 or dc >= 0]
_CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
_EDGES = [(side, lag) for side in ("top", "bottom", "left", "right") for lag in range(3)] + [(c, 0) for c in _CORNERS]


def _edge(pixels: Tensor, side: str) -> Tensor:
    """The edge row [1, W, b, C], column [H, 1, b, C] or corner [1, 1, b, C] that `side` names."""
    rows = slice(0, 1) if "top" in side else slice(-1, None) if "bottom" in side else slice(None)
    columns = slice(0, 1) if "left" in side else slice(-1, None) if "right" in side else slice(None)
    return pixels[rows, columns]


def _add_lag(total: Tensor, pixels: Tensor, dr: int, dc: int) -> None:
    """total += sum over pixels q of x(q) x(q + (dr, dc))^T, both inside the map.

    Args:
        total: [C, C], changed in place.
        pixels: [H, W, b, C], contiguous in its last three axes.
        dr: Vertical lag, >= 0.
        dc: Horizontal lag.
    """
    height, width = pixels.shape[:2]
    if dr >= height or abs(dc) >= width:
        return
    first = pixels[: height - dr, max(0, -dc) : width - max(0, dc)].flatten(1, 2)
    second = pixels[dr:, max(0, dc) : width - max(0, -dc)].flatten(1, 2)
    for a, b in zip(first, second, strict=True):
        total.addmm_(a.t(), b)


def conv_columns(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The patches that a convolution multiplies, such that W @ columns == conv(x) for each conv group.

    Args:
        layer: The convolution.
        x: Inputs [b, C, H, W].

    Returns:
        [conv_groups, d, b * positions] with d = C / conv_groups * kh * kw, in the order of weight.reshape(rows, d).
    """
    x = F.pad(x, _padding(layer), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    patches = F.unfold(x, layer.kernel_size, _pair(layer.dilation), 0, _pair(layer.stride))
    b, _, positions = patches.shape
    grouped = patches.reshape(b, layer.groups, -1, positions)
    return grouped.permute(1, 2, 0, 3).reshape(layer.groups, grouped.shape[2], b * positions)


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Padding in F.pad's order: left, right, top, bottom."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        vertical, horizontal = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    vertical, horizontal = _pair(layer.padding)
    return (horizontal, horizontal, vertical, vertical)


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, tuple) and len(value) == 2:
        return (int(value[0]), int(value[1]))
    raise TypeError(f"expected a pair, got {value!r}")
