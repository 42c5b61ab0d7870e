"""Rounding to nearest, which the other comparators start from."""

from __future__ import annotations

from edged.comparators.inputs import UnitInputs
from edged.comparators.method import Options, Solution, grid_of
from edged.comparators.units import Unit


class Nearest:
    """Round each weight to the nearest value of the grid; read no images."""

    blockwise = False
    iterations = 0

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Round all weights of the unit."""
        return nearest(unit, options)


def nearest(unit: Unit, options: Options) -> Solution:
    """Return a unit's weights rounded to nearest."""
    weights = {}
    for name, layer in unit.layers.items():
        grid = grid_of(layer.weight, options)
        weights[name] = grid.quantized(grid.encode(layer.weight.detach().flatten(1)), tuple(layer.weight.shape))
    return Solution(weights)
