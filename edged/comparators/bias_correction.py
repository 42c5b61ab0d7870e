"""Empirical bias correction (Nagel et al., arXiv 1906.04721, section 4.2).

Rounding moves the mean of a layer's outputs. What it moved them by, E[Y] - E[Y_hat] of each output channel over the
calibration images, is added back. Layers are corrected one after another, so Y_hat is computed from the inputs that the
corrected layers before it return.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edged.comparators.inputs import UnitInputs
from edged.comparators.method import Options, Solution
from edged.comparators.nearest import nearest
from edged.comparators.units import Unit


class BiasCorrection:
    """Round to nearest, and add the change of each channel's mean back."""

    blockwise = False
    iterations = 0

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Round the layer and measure the means of its outputs."""
        weights = nearest(unit, options).weights
        decoded = {unit.name: weights[unit.name].decode()}
        change = torch.zeros(len(unit.layer.weight), dtype=torch.float64)
        for x, y in inputs.pairs():
            with torch.no_grad():
                change += len(x) * (channel_means(y, unit) - channel_means(unit.run(x, decoded), unit)).cpu()
        shift = (change / len(inputs.of_quantized)).to(unit.layer.weight)
        return Solution(weights, {unit.name: shift})


def channel_means(outputs: Tensor, unit: Unit) -> Tensor:
    """Return the mean of each output channel, float64 [rows], of outputs [n, rows, H, W] or [n, ..., rows]."""
    if isinstance(unit.layer, nn.Conv2d):
        outputs = outputs.movedim(1, -1)
    return outputs.flatten(0, -2).mean(0, dtype=torch.float64)
