"""What every comparator is: a method that quantizes one unit of a network, given the inputs that reach it.

The comparators are the other rows of Table 1 in arXiv 2509.05576, and REQuant. They exist for `edged compare` alone:
the engine that quantizes models for service (`edged.engine`) uses none of them. All of them but REQuant start from the
same grid of each channel; they read the same calibration images and return the same kind of codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from edged.comparators.inputs import UnitInputs
from edged.comparators.units import Unit
from edged.quant.grid import Grid, QuantizedWeight
from edged.quant.scale_search import weighted_grid
from edged.spec import Scheme


@dataclass(frozen=True)
class Options:
    """The settings that all comparators share.

    Attributes:
        bits: Bits per weight code, 2 to 8, of every layer.
        scheme: Position of zero in the grid.
        iterations: Optimization steps of each unit; None for the number of the method's own paper.
        seed: Seed of the order in which images are drawn.
    """

    bits: int = 4
    scheme: Scheme = Scheme.ASYMMETRIC
    iterations: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Solution:
    """A quantized unit.

    Attributes:
        weights: Quantized weight of each layer by its name.
        shifts: Values [rows] that are added to the outputs of a layer, by its name; empty for none.
    """

    weights: Mapping[str, QuantizedWeight]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)


class Comparator(Protocol):
    """A method of quantizing a unit.

    Attributes:
        blockwise: Whether its units are residual blocks, where the network has some, instead of single layers.
        iterations: Optimization steps of each unit in the method's own paper; 0 where it does not iterate.
    """

    blockwise: bool
    iterations: int

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Quantize the layers of a unit.

        Args:
            unit: The unit in full precision. Not modified.
            inputs: What reaches the unit in full precision, and through the quantized units before it.
            options: Bits, grid, iterations and seed.
        """


def grid_of(weight: Tensor, options: Options) -> Grid:
    """Return the grid that all comparators start from: for each channel the range with the least rounding error.

    Args:
        weight: Weight [rows, ...]. Not modified.
        options: Bits and scheme.
    """
    W = weight.detach().flatten(1)
    return weighted_grid(W, torch.ones_like(W[0]), options.bits, options.scheme)
