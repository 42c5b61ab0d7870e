"""Grids with non-uniform levels: powers of whole steps, for weights that are stored and decoded, never computed on.

REQuant (arXiv 2510.04044) also searches its range in a transformed weight space. Here the transformation is a power of
the magnitude, t = sign(w) |w|^(1/p), so that the levels of a row are

    real = scale * sign(k) * |k|^p,    k = code - zero_point

with an exponent p >= 1 of its own. Levels are dense around zero, where most weights are. p is a whole number of
sixteenths: then |k|^p in float32 does not depend on how a platform rounds powers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edged.quant.grid import Grid, QuantizedWeight, positive_scale, range_grid
from edged.spec import Scheme

SIXTEENTHS = 16
UNIFORM = SIXTEENTHS  # the exponent 1
MOST_SIXTEENTHS = 48


@dataclass(frozen=True)
class PowerGrid(Grid):
    """Scales, zero-points and exponents, one of each per row.

    Attributes:
        exponent: Exponent of each row's levels in sixteenths [rows], UNIFORM..MOST_SIXTEENTHS, uint8.
    """

    exponent: Tensor

    def encode(self, w: Tensor) -> Tensor:
        """Return the codes of the nearest levels to real values `w` [rows, columns], uint8 [rows, columns]."""
        levels = magnitudes(self.exponent, self.bits).to(w.dtype)
        between = (levels[:, 1:] + levels[:, :-1]) / 2
        steps = torch.searchsorted(between, (w.abs() / self.scale[:, None]).contiguous(), out_int32=True)
        codes = torch.where(w < 0, -steps, steps).add_(self.zero_point[:, None].to(torch.int32))
        return codes.clamp_(0, self.max_code).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the real values [rows, columns] of `codes` [rows, columns]."""
        steps = codes.to(torch.int64).sub_(self.zero_point[:, None].to(torch.int64))
        levels = magnitudes(self.exponent, self.bits).to(self.scale.dtype)
        values = levels.gather(1, steps.abs()).mul_(self.scale[:, None])
        return torch.where(steps < 0, -values, values)

    def quantized(self, codes: Tensor, shape: tuple[int, ...]) -> PowerWeight:
        """Combine `codes` [rows, columns] and this grid into the quantized weight of `shape`."""
        scale, zero_point = self.scale.float(), self.zero_point.to(torch.uint8)
        return PowerWeight(codes, scale, zero_point, self.bits, shape, self.exponent)


@dataclass(frozen=True)
class PowerWeight(QuantizedWeight):
    """A weight with non-uniform levels, as it is stored.

    Attributes:
        exponent: Exponent of each row's levels in sixteenths, uint8 [rows].
    """

    exponent: Tensor

    @property
    def is_uniform(self) -> bool:
        """Return False: engines cannot compute on the codes."""
        return False

    def to(self, device: torch.device) -> PowerWeight:
        """Return the weight on a device; its tensors are shared if they are there."""
        moved = super().to(device)
        return PowerWeight(**{**vars(moved), "exponent": self.exponent.to(device)})

    def decode(self) -> Tensor:
        """Decode to the float32 weight of `shape`, bit-identical on every device."""
        grid = PowerGrid(self.scale, self.zero_point.to(torch.float32), self.bits, self.exponent)
        return grid.decode(self.codes).reshape(self.shape)


def magnitudes(exponent: Tensor, bits: int) -> Tensor:
    """Return k^p for each row's exponent p and k = 0..2**bits - 1, float32 [rows, 2**bits].

    Args:
        exponent: Exponents in sixteenths, uint8 [rows].
        bits: Bits per code.
    """
    steps = torch.arange(1 << bits, dtype=torch.float64, device=exponent.device)
    return (steps ** (exponent.to(torch.float64) / SIXTEENTHS)[:, None]).float()


def power_range_grid(low: Tensor, high: Tensor, bits: int, scheme: Scheme, exponent: Tensor) -> PowerGrid:
    """Build the grid that spans [low, high] with 2**bits levels, uniform in the transformed space.

    Args:
        low: Lowest value [rows], <= 0.
        high: Highest value [rows], >= 0.
        bits: Bits per code.
        scheme: Kind of grid in the transformed space.
        exponent: Exponent of each row's levels in sixteenths, uint8 [rows].
    """
    power = exponent.to(low.dtype) / SIXTEENTHS
    grid = range_grid(-((-low) ** (1 / power)), high ** (1 / power), bits, scheme)
    return PowerGrid(positive_scale(grid.scale**power), grid.zero_point, bits, exponent)


def joined(grids: list[Grid]) -> Grid:
    """Return the rows of several grids of one kind and width as one grid."""
    first = grids[0]
    tensors = {name: torch.cat([getattr(grid, name) for grid in grids]) for name in vars(first) if name != "bits"}
    return type(first)(**tensors, bits=first.bits)
