"""Moments of a plain 3x3 convolution (stride 1, zero padding 1), computed without patches.

Block (o, o') of G = X X^T is the sum over output positions p of x(p + o) x(p + o')^T. It depends on the lag o' - o
alone, except for pixels that only positions outside the map would read: offset -1 never reads the last row, offset +1
never reads the first. So 13 lags (up to transposition) give all 81 blocks, after subtracting the products of the edge
rows, edge columns and corners that both offsets of a block miss.

A convolution's weight gradient, with x as both its input and its output gradient, computes the lags of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from edged.matmul import shifted_products

OFFSETS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
SIDES = ("top", "bottom", "left", "right")
CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
_MISSED_ROW = {1: "top", -1: "bottom"}
_MISSED_COLUMN = {1: "left", -1: "right"}


class LagMoments:
    """Moments of a 3x3 convolution that keeps the map's size.

    Args:
        channels: Number of input channels C; d = 9 C.
        device: Device of the sums.
    """

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        self.positions = 0
        self._channels = channels
        # Lags of 0..2 rows down and -2..2 columns across: 13 lags, two of them twice. [C, C, 3, 5]
        self._lags = self._zeros(channels, channels, 3, 5, device)
        # Lags 0..2 along each edge, and the corners' lag 0.
        self._edges = {side: self._zeros(channels, channels, *extent_of(side), device) for side in (*SIDES, *CORNERS)}
        self._totals = {side: torch.zeros(channels, device=device) for side in ("", *SIDES, *CORNERS)}
        self._cross: list[Tensor] = []  # [rows, C, 3, 3] each

    def update(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Add a batch of inputs [b, C, H, W] and targets [b, rows, H, W] to the sums."""
        x = x.float()
        self.positions += x.shape[0] * x.shape[2] * x.shape[3]
        self._lags += shifted_products(x, pad(x, (0, 0, 0, 2)), (3, 5), padding=(0, 2))
        self._totals[""] += x.sum((0, 2, 3))
        for side, products in self._edges.items():
            edge = edge_of(x, side)
            down, right = extent_of(side)
            products += shifted_products(edge, pad(edge, (0, right - 1, 0, down - 1)), (down, right))
            self._totals[side] += edge.sum((0, 2, 3))
        sums = [shifted_products(y.float(), x, (3, 3), padding=(1, 1)) for y in targets]
        for total, new in zip(self._cross, sums, strict=False):
            total += new
        self._cross = self._cross or sums

    def take_gram(self, scale: float = 1.0) -> Tensor:
        """Return scale * X X^T, float32 [1, d, d], and release its sums; it can be called only once."""
        C = self._channels
        out = self._lags.new_empty(C, 9, C, 9)
        for i, o in enumerate(OFFSETS):
            for j, p in enumerate(OFFSETS[i:], start=i):
                block = self._block(o, p)
                out[:, i, :, j] = block
                if i != j:
                    out[:, j, :, i] = block.t()
        self._lags, self._edges = self._lags.new_empty(0), {}
        return out.mul_(scale).view(1, 9 * C, 9 * C)

    def total(self) -> Tensor:
        """Return the sum of inputs X 1, float32 [1, d]."""
        sums = []
        for row, column in OFFSETS:
            rows, columns = _MISSED_ROW.get(row, ""), _MISSED_COLUMN.get(column, "")
            missed = [self._totals[side] for side in (rows, columns) if side]
            both = self._totals[rows + columns] if rows and columns else 0
            sums.append(self._totals[""] - sum(missed) + both)
        return torch.stack(sums, dim=1).reshape(1, -1)

    def cross(self, target: int) -> Tensor:
        """Return Y X^T of the target with this index, float32 [1, rows, d]."""
        return self._cross[target].flatten(1)[None]

    @staticmethod
    def _zeros(rows: int, channels: int, height: int, width: int, device: torch.device | None) -> Tensor:
        """Return sums of zeros [rows, channels, height, width], in the layout of weight gradients."""
        zeros = torch.zeros(rows, channels, height, width, device=device)
        return zeros.to(memory_format=torch.channels_last)

    def _block(self, o: tuple[int, int], p: tuple[int, int]) -> Tensor:
        """Sum x(q + o) x(q + p)^T over output positions q [C, C], for o not after p in reading order."""
        dr, dc = p[0] - o[0], p[1] - o[1]
        block = self._lags[:, :, dr, dc + 2]
        row = _MISSED_ROW.get(o[0], "") if dr == 0 else ""
        column = _MISSED_COLUMN.get(o[1], "") if dc == 0 else ""
        if row:
            block = block - self._along(row, dc)
        if column:
            block = block - self._along(column, dr)
        if row and column:
            block = block + self._edges[row + column][:, :, 0, 0]
        return block

    def _along(self, side: str, lag: int) -> Tensor:
        """Return the product of an edge with itself at a lag [C, C]."""
        product = self._edges[side].flatten(2)[:, :, abs(lag)]
        return product.t() if lag < 0 else product


def lag_elements(channels: int) -> int:
    """Return the number of elements in the sums over inputs."""
    extents = [(3, 5), *(extent_of(side) for side in (*SIDES, *CORNERS))]
    return channels**2 * sum(down * across for down, across in extents)


def extent_of(side: str) -> tuple[int, int]:
    """Return the numbers of lags down and to the right that are needed for an edge."""
    return (1, 1) if side in CORNERS else (1, 3) if side in ("top", "bottom") else (3, 1)


def edge_of(x: Tensor, side: str) -> Tensor:
    """Return the edge row [b, C, 1, W], column [b, C, H, 1] or corner [b, C, 1, 1] that `side` names."""
    rows = slice(0, 1) if "top" in side else slice(-1, None) if "bottom" in side else slice(None)
    columns = slice(0, 1) if "left" in side else slice(-1, None) if "right" in side else slice(None)
    return x[:, :, rows, columns]
