"""Grids of activations, one scale and zero point per tensor, and the grids of a whole graph.

    real = scale * (code - zero_point)

Weights have a grid per output channel (edged.quant.grid); an activation has one, because integer convolutions sum over
input channels.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edged.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class ActivationScheme(str, enum.Enum):
    """The codes of activations."""

    ASYMMETRIC = "asymmetric"  # unsigned, any zero point: CPU engines, in which a zero point of 0 absorbs a ReLU
    SYMMETRIC = "symmetric"  # signed, zero point 0: TensorRT takes no other


@dataclass(frozen=True)
class ActivationGrid:
    """The grid of one tensor.

    Attributes:
        scale: Step between neighboring codes, a positive float32.
        zero_point: Code that represents zero.
        bits: Bits per code.
        signed: Whether codes are -2**(bits - 1)..2**(bits - 1) - 1 instead of 0..2**bits - 1.
    """

    scale: float
    zero_point: int
    bits: int = 8
    signed: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise UsageError(f"the scale of an activation has value {self.scale!r}; it must be positive and finite")
        if not self.least <= self.zero_point <= self.most:
            raise UsageError(f"zero_point has value {self.zero_point}; codes are {self.least} to {self.most}")

    @property
    def least(self) -> int:
        """The smallest code."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def most(self) -> int:
        """The largest code."""
        return self.least + (1 << self.bits) - 1

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value that have a code."""
        return self.scale * (self.least - self.zero_point), self.scale * (self.most - self.zero_point)

    def encode(self, x: Tensor) -> Tensor:
        """Return the nearest codes of real values, as whole numbers in x's dtype; halves are rounded to even."""
        return (x / self.scale).round_().add_(self.zero_point).clamp_(self.least, self.most)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the real values of codes."""
        return (codes - self.zero_point) * self.scale

    def nearest(self, x: Tensor) -> Tensor:
        """Return the nearest values on the grid, decode(encode(x))."""
        return self.encode(x).sub_(self.zero_point).mul_(self.scale)

    @classmethod
    def spanning(
        cls, low: float, high: float, bits: int = 8, scheme: ActivationScheme = ActivationScheme.ASYMMETRIC
    ) -> ActivationGrid:
        """Return the grid over a range, widened to include zero, which every grid represents exactly.

        Args:
            low: Least value.
            high: Greatest value.
            bits: Bits per code.
            scheme: Kind of codes; a symmetric grid spans [-m, m] with m = max(-low, high).
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if scheme is ActivationScheme.SYMMETRIC:
            most = (1 << bits - 1) - 1
            return cls(_float32(max(-low, high) / most), 0, bits, signed=True)
        most = (1 << bits) - 1
        scale = _float32((high - low) / most)
        return cls(scale, min(max(round(-low / scale), 0), most), bits)

    def of_gate(self) -> ActivationGrid:
        """Return the grid of sigmoid's outputs, 0 to 1, in the same kind of codes as this grid of its inputs."""
        return replace(self, scale=_float32(1 / self.most), zero_point=0)


Grids = Mapping[str, ActivationGrid]
Range = tuple[float, float]  # the least value, <= 0, and the greatest, >= 0


def _float32(scale: float) -> float:
    """Round to float32, as engines store scales; a tensor that is always zero takes scale 1."""
    with np.errstate(over="ignore"):  # it is infinite then, and refused
        rounded = float(np.float32(scale))
    return rounded if rounded > np.finfo(np.float32).tiny else 1.0
