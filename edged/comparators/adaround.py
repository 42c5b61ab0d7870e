"""AdaRound (Nagel et al., arXiv 2004.10568): learn for each weight of a layer whether it is rounded up or down.

Reconstruction is asymmetric: the targets are the layer's outputs in full precision, after BatchNorm and activation, and
its inputs are those that the quantized layers before it return.
"""

from __future__ import annotations

from edged.comparators.inputs import UnitInputs
from edged.comparators.method import Options, Solution, grid_of
from edged.comparators.rounding import SoftRounding, cosine, learn_rounding
from edged.comparators.units import Unit


class AdaRound:
    """Learn the rounding of each layer on its own; 10,000 steps on 32 images each in the paper."""

    blockwise = False
    iterations = 10_000

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Learn the rounding of the layer."""
        rounding = SoftRounding(unit.layer.weight, grid_of(unit.layer.weight, options))
        targets = inputs.keep("targets", map(unit.activated, inputs.targets()))
        learn_rounding(
            unit,
            {unit.name: rounding},
            inputs.of_quantized,
            targets,
            None,
            iterations=self.iterations if options.iterations is None else options.iterations,
            published=self.iterations,
            beta=cosine,
            seed=options.seed,
        )
        return Solution({unit.name: rounding.quantized()})
