"""Per-channel grids: the real values that a row of weights can take.

One affine law holds everywhere: ``real = scale * (code - zero_point)`` with unsigned codes ``0..2**bits - 1``
and an integer zero_point. A symmetric grid is the special case ``zero_point == 2**(bits - 1)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edged.spec import Scheme


@dataclass(frozen=True)
class Grid:
    """Scales and zero-points, one pair per row.

    Attributes:
        scale: Step between neighboring codes [rows], positive.
        zero_point: Code that represents zero [rows], integers in 0..2**bits - 1, stored in scale's dtype.
        bits: Bits per code, 2..8.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int

    @property
    def max_code(self) -> int:
        """The largest code, 2**bits - 1."""
        return (1 << self.bits) - 1

    def encode(self, w: Tensor) -> Tensor:
        """Return the nearest codes of real values `w` [rows, columns], uint8 [rows, columns]."""
        return nearest_codes_((w / self.scale[:, None]).add_(self.zero_point[:, None]), self.max_code).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the real values [rows, columns] of `codes` [rows, columns]."""
        return self.scale[:, None] * (codes.to(self.scale.dtype) - self.zero_point[:, None])

    def nearest(self, w: Tensor) -> Tensor:
        """Return the nearest real values on the grid, decode(encode(w)) [rows, columns]."""
        return self.decode(self.encode(w))

    def quantized(self, codes: Tensor, shape: tuple[int, ...]) -> QuantizedWeight:
        """Combine `codes` [rows, columns] and this grid into the quantized weight of `shape`."""
        return QuantizedWeight(codes, self.scale.float(), self.zero_point.to(torch.uint8), self.bits, shape)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as it is stored and served.

    Attributes:
        codes: Codes, uint8 [rows, columns], values 0..2**bits - 1.
        scale: Step between neighboring codes, float32 [rows].
        zero_point: Code that represents zero, uint8 [rows].
        bits: Bits per code.
        shape: Shape of the layer's weight tensor, with rows * columns elements.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    shape: tuple[int, ...]

    @property
    def is_uniform(self) -> bool:
        """Whether levels have equal steps, so that engines can compute on the codes."""
        return True

    def to(self, device: torch.device) -> QuantizedWeight:
        """Return the weight on a device; its tensors are shared if they are there."""
        tensors = {name: getattr(self, name).to(device) for name in ("codes", "scale", "zero_point")}
        return replace(self, **tensors)

    def decode(self) -> Tensor:
        """Decode to the float32 weight of `shape`, bit-identical on every device."""
        grid = Grid(self.scale, self.zero_point.to(torch.float32), self.bits)
        return grid.decode(self.codes).reshape(self.shape)


def nearest_codes_(steps: Tensor, max_code: int) -> Tensor:
    """Round to the nearest code 0..max_code in place, halves to even.

    Args:
        steps: Unrounded codes, float32 or float64 of any shape. Overwritten.
        max_code: Largest code.

    Returns:
        The rounded `steps`.
    """
    # Adding a number this large rounds to whole steps. torch.round_ takes twenty times as long on a CPU.
    rounder = 1.5 * 2**23 if steps.dtype is torch.float32 else 1.5 * 2**52
    return steps.clamp_(0, max_code).add_(rounder).sub_(rounder)


def row_range(W: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the range of values that each row's grid must span; it always includes zero.

    Args:
        W: Weights [rows, columns]. Not modified.
        scheme: Kind of grid; a symmetric range is [-max|w|, max|w|].

    Returns:
        The lowest value [rows], <= 0, and the highest value [rows], >= 0.
    """
    low, high = W.amin(1).clamp_max(0), W.amax(1).clamp_min(0)
    if scheme is Scheme.SYMMETRIC:
        high = torch.maximum(high, -low)
        low = -high
    return low, high


def range_grid(low: Tensor, high: Tensor, bits: int, scheme: Scheme) -> Grid:
    """Build the grid that spans [low, high] with 2**bits codes.

    Args:
        low: Lowest value [rows], <= 0.
        high: Highest value [rows], >= 0.
        bits: Bits per code.
        scheme: Kind of grid; a symmetric grid has its zero_point at 2**(bits - 1) and 2**(bits - 1) - 1 steps above it.

    Returns:
        One scale and zero_point per row; the scale of an all-zero row is 1.
    """
    steps = 2**bits - 1
    if scheme is Scheme.SYMMETRIC:
        middle = 2 ** (bits - 1)
        scale = positive_scale(high / (middle - 1))
        return Grid(scale, torch.full_like(scale, middle), bits)
    scale = positive_scale((high - low) / steps)
    return Grid(scale, torch.round(-low / scale).clamp_(0, steps), bits)


def minmax_grid(W: Tensor, bits: int, scheme: Scheme) -> Grid:
    """Build the grid that spans each row's full range.

    Args:
        W: Weights [rows, columns]. Not modified.
        bits: Bits per code.
        scheme: Kind of grid.
    """
    return range_grid(*row_range(W, scheme), bits, scheme)


def positive_scale(scale: Tensor) -> Tensor:
    """Return scales that can be stored and divided by, with 1 in place of those of all-zero rows.

    Args:
        scale: Scales [rows], >= 0. Not modified.
    """
    # A scale is stored as float32, so it must be a normal number.
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(scale > tiny, scale, torch.ones_like(scale))
