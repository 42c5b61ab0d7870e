from __future__ import annotations

import pytest
import torch

from edged.comparators.adaquant import AdaQuant
from edged.comparators.method import Options, grid_of
from edged.comparators.nearest import nearest
from tests.support.comparators import decoded, network, unit_inputs, whole


@pytest.mark.parametrize("name", ["layer1.0.conv1", "linear"])
def test_the_output_error_falls_as_weights_scales_and_shifts_are_optimized(name: str):
    options = Options(bits=3)
    unit, inputs = unit_inputs(network(), name, options)
    x, target = whole(inputs.of_quantized), whole(inputs.targets())

    def error(weight: torch.Tensor, shift: torch.Tensor) -> float:
        y = unit.run(x, {unit.name: weight})
        y = y + (shift if y.dim() == 2 else shift[:, None, None])
        return float((unit.normalized(y) - unit.normalized(target)).square().mean())

    found = AdaQuant().quantize(unit, inputs, options)
    before = error(*decoded(nearest(unit, options).weights).values(), torch.zeros(len(unit.layer.weight)))
    assert error(found.weights[name].decode(), found.shifts[name]) < 0.95 * before
    assert not torch.equal(found.weights[name].scale, grid_of(unit.layer.weight, options).scale)
    assert found.shifts[name].abs().max() > 0


def test_no_steps_are_rounding_to_nearest():
    options = Options(bits=3, iterations=0)
    unit, inputs = unit_inputs(network(), "layer1.0.conv1", options)
    found = AdaQuant().quantize(unit, inputs, options)
    assert torch.equal(found.weights[unit.name].codes, nearest(unit, options).weights[unit.name].codes)
    assert not found.shifts[unit.name].any()
