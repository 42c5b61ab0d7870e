"""BRECQ (Li et al., arXiv 2102.05426): learn the rounding of all layers of a residual block by the block's outputs.

The squared error of each output counts by its squared gradient, the diagonal of the Fisher matrix. Layers outside of
blocks are reconstructed on their own, with equal weights. In the paper the first and the last layer have 8 bits; here
all layers have the same number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edged.comparators.inputs import UnitInputs, squared_gradients
from edged.comparators.method import Options, Solution, grid_of
from edged.comparators.nearest import nearest
from edged.comparators.rounding import SoftRounding, learn_rounding, linear
from edged.comparators.units import Unit
from edged.models.layers import shared_copy


class Brecq:
    """Learn the rounding of each residual block; 20,000 steps on 32 images each in the paper."""

    blockwise = True
    iterations = 20_000

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Learn the rounding of the unit's layers together."""
        roundings = {k: SoftRounding(layer.weight, grid_of(layer.weight, options)) for k, layer in unit.layers.items()}
        with torch.no_grad():
            targets = unit.activated(inputs.targets)
        learn_rounding(
            unit,
            roundings,
            inputs.of_quantized,
            targets,
            importance_of(unit, inputs, options) if unit.is_block else None,
            iterations=self.iterations if options.iterations is None else options.iterations,
            published=self.iterations,
            beta=linear,
            seed=options.seed,
        )
        return Solution({name: rounding.quantized() for name, rounding in roundings.items()})


def importance_of(unit: Unit, inputs: UnitInputs, options: Options) -> Tensor:
    """Return the squared gradient by each output [n, ...] of a block rounded to nearest, with a mean of 1."""
    rounded = shared_copy(inputs.quantized)
    for name, weight in nearest(unit, options).weights.items():
        layer = rounded.get_submodule(name)
        layer.weight = nn.Parameter(weight.decode(), requires_grad=False)
    squares = squared_gradients(inputs.full, rounded, unit.name, inputs.images())
    mean = squares.mean()
    return squares / mean if mean > 0 else torch.ones_like(squares)
