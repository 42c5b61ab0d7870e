"""Moments of a plain 3x3 convolution (stride 1, zero padding 1) without patches.

Block (o, o') of G = X X^T is the sum over output positions p of x(p + o) x(p + o')^T. It depends on the lag o' - o
alone, apart from the pixels that only positions outside the map would read: offset -1 never reads the last row, offset
+1 never the first. So 13 lags (up to transposition) give all 81 blocks, after 16 small products of edge rows, edge
columns and corners are taken off where both offsets of a block miss them. That is also how G is stored: 29 C x C
matrices instead of 81.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_OFFSETS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
# Half of the 25 lags; the others are transposes.
_LAGS = [(dr, dc) for dr in range(3) for dc in range(-2, 3) if dr > 0 or dc >= 0]
_SIDES = ("top", "bottom", "left", "right")
_CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
_EDGES = [(side, lag) for side in _SIDES for lag in range(3)] + [(corner, 0) for corner in _CORNERS]
_MISSED_ROW = {1: "top", -1: "bottom"}
_MISSED_COLUMN = {1: "left", -1: "right"}


class LagMoments:
    """Moments of a 3x3 convolution that keeps the map's size.

    Args:
        channels: C; d = 9 C.
    """

    def __init__(self, channels: int) -> None:
        self.positions = 0
        self._channels = channels
        self._lags = torch.zeros(len(_LAGS) + len(_EDGES), channels, channels)  # [lag or edge, C, C]
        self._totals = torch.zeros(1 + len(_SIDES) + len(_CORNERS), channels)  # the map's, then the edges'
        self._cross: list[Tensor] = []  # [9, rows, C] each

    def update(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Add inputs [b, C, H, W]; targets are [b, rows, H, W]."""
        pixels = _pixels(x)
        self._lags, self._totals = self._lags.to(x.device), self._totals.to(x.device)
        self.positions += pixels.shape[0] * pixels.shape[1] * pixels.shape[2]
        for total, (dr, dc) in zip(self._lags, _LAGS, strict=False):
            _add_product(total, pixels, pixels, dr, dc)
        for total, (side, lag) in zip(self._lags[len(_LAGS) :], _EDGES, strict=True):
            edge = _edge(pixels, side)
            _add_product(total, edge, edge, *((0, lag) if side in ("top", "bottom") else (lag, 0)))
        for total, side in zip(self._totals, ("", *_SIDES, *_CORNERS), strict=True):
            total += _edge(pixels, side).sum((0, 1, 2))
        outputs = [_pixels(target) for target in targets]
        if not self._cross:
            self._cross = [pixels.new_zeros(9, y.shape[3], self._channels) for y in outputs]
        for cross, y in zip(self._cross, outputs, strict=True):
            for total, (dr, dc) in zip(cross, _OFFSETS, strict=True):
                _add_product(total, y, pixels, dr, dc)

    def gram(self, scale: float = 1.0) -> Tensor:
        """Scale * X X^T, float32 [1, d, d]."""
        C = self._channels
        out = self._lags.new_empty(C, 9, C, 9)
        for i, o in enumerate(_OFFSETS):
            for j, p in enumerate(_OFFSETS[i:], start=i):
                block = self._block(o, p)
                out[:, i, :, j] = block
                if i != j:
                    out[:, j, :, i] = block.t()
        return out.mul_(scale).reshape(1, 9 * C, 9 * C)

    def total(self) -> Tensor:
        """X 1, float32 [1, d]."""
        by_side = dict(zip(("", *_SIDES, *_CORNERS), self._totals, strict=True))
        sums = []
        for row, column in _OFFSETS:
            rows, columns = _MISSED_ROW.get(row, ""), _MISSED_COLUMN.get(column, "")
            missed = [by_side[side] for side in (rows, columns) if side]
            both = by_side[rows + columns] if rows and columns else 0
            sums.append(by_side[""] - sum(missed) + both)
        return torch.stack(sums, dim=1).reshape(1, -1)

    def cross(self, target: int) -> Tensor:
        """Y X^T, float32 [1, rows, d]."""
        return self._cross[target].permute(1, 2, 0).flatten(1)[None]

    def _block(self, o: tuple[int, int], p: tuple[int, int]) -> Tensor:
        """Sum over output positions q of x(q + o) x(q + p)^T [C, C], for o not after p in reading order."""
        dr, dc = p[0] - o[0], p[1] - o[1]
        block = self._lags[_LAGS.index((dr, dc))]
        row = _MISSED_ROW.get(o[0], "") if dr == 0 else ""
        column = _MISSED_COLUMN.get(o[1], "") if dc == 0 else ""
        if row:
            block = block - self._edge_product(row, dc)
        if column:
            block = block - self._edge_product(column, dr)
        if row and column:
            block = block + self._edge_product(row + column, 0)
        return block

    def _edge_product(self, side: str, lag: int) -> Tensor:
        product = self._lags[len(_LAGS) + _EDGES.index((side, abs(lag)))]
        return product.t() if lag < 0 else product


def _pixels(x: Tensor) -> Tensor:
    """[b, C, H, W] as [H, W, b, C]: the pixels of any run in a row are a contiguous [pixels * b, C] matrix."""
    return x.float().permute(2, 3, 0, 1).contiguous()


def _edge(pixels: Tensor, side: str) -> Tensor:
    """The edge row [1, W, b, C], column [H, 1, b, C] or corner [1, 1, b, C] that `side` names; all for ""."""
    rows = slice(0, 1) if "top" in side else slice(-1, None) if "bottom" in side else slice(None)
    columns = slice(0, 1) if "left" in side else slice(-1, None) if "right" in side else slice(None)
    return pixels[rows, columns]


def _add_product(total: Tensor, first: Tensor, second: Tensor, dr: int, dc: int) -> None:
    """Total += sum over positions q of first(q) second(q + (dr, dc))^T, where both lie inside the map.

    Args:
        total: [F, S], changed in place.
        first: [H, W, b, F], contiguous in its last three axes.
        second: [H, W, b, S], likewise.
        dr: Vertical lag.
        dc: Horizontal lag.
    """
    height, width = first.shape[:2]
    if abs(dr) >= height or abs(dc) >= width:
        return
    a = first[max(0, -dr) : height - max(0, dr), max(0, -dc) : width - max(0, dc)].flatten(1, 2)
    b = second[max(0, dr) : height - max(0, -dr), max(0, dc) : width - max(0, -dc)].flatten(1, 2)
    total.addbmm_(a.transpose(1, 2), b)
