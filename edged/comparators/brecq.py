"""BRECQ (Li et al., arXiv 2102.05426): learn the rounding of all layers of a residual block by the block's outputs.

The squared error of each output counts by its squared gradient, the diagonal of the Fisher matrix. Layers outside of
blocks are reconstructed on their own, with equal weights. In the paper the first and the last layer have 8 bits; here
all layers have the same number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edged.comparators.inputs import UnitInputs, squared_gradients
from edged.comparators.method import Options, Solution, grid_of
from edged.comparators.nearest import nearest
from edged.comparators.rounding import Importance, SoftRounding, learn_rounding, linear
from edged.comparators.units import Unit
from edged.models.layers import shared_copy


class Brecq:
    """Learn the rounding of each residual block; 20,000 steps on 32 images each in the paper."""

    blockwise = True
    iterations = 20_000

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Learn the rounding of the unit's layers together."""
        roundings = {k: SoftRounding(layer.weight, grid_of(layer.weight, options)) for k, layer in unit.layers.items()}
        targets = inputs.keep("targets", map(unit.activated, inputs.targets()))
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


def importance_of(unit: Unit, inputs: UnitInputs, options: Options) -> Importance:
    """Return the squared gradient by each output of a block rounded to nearest, with a mean of 1.

    Returns:
        A function from the indices of images to the squared gradients [images, ...].
    """
    rounded = shared_copy(inputs.quantized)
    for name, weight in nearest(unit, options).weights.items():
        layer = rounded.get_submodule(name)
        layer.weight = nn.Parameter(weight.decode(), requires_grad=False)
    scale, sums = 0.0, []

    def scaled() -> Iterator[Tensor]:
        nonlocal scale
        for squares in squared_gradients(inputs.full, rounded, unit.name, inputs.images()):
            # About 1 from here on, because float16 would lose what is very small.
            scale = scale or float(squares.mean())
            squares /= scale or 1.0
            sums.append(float(squares.mean()) * len(squares))
            yield squares

    kept = inputs.keep("importance", scaled())
    mean = math.fsum(sums) / len(kept)
    if mean == 0:
        return lambda images: torch.ones_like(kept.rows(images))
    return lambda images: kept.rows(images) / mean
