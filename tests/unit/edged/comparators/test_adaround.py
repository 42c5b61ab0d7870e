from __future__ import annotations

import pytest
import torch

from edged.comparators.adaround import AdaRound
from edged.comparators.method import Options, grid_of
from edged.comparators.nearest import nearest
from tests.support.comparators import decoded, network, output_error, unit_inputs

OPTIONS = Options(bits=3, iterations=150)


@pytest.mark.parametrize("name", ["layer1.0.conv1", "layer2.0.conv2", "linear"])
def test_the_output_error_is_below_that_of_rounding_to_nearest(name: str):
    unit, inputs = unit_inputs(network(), name, OPTIONS)
    learned = AdaRound().quantize(unit, inputs, OPTIONS)
    before = output_error(unit, inputs, decoded(nearest(unit, OPTIONS).weights))
    assert output_error(unit, inputs, decoded(learned.weights)) < 0.9 * before


def test_each_weight_is_rounded_down_or_up_on_the_same_grid():
    unit, inputs = unit_inputs(network(), "layer1.0.conv1", OPTIONS)
    found = AdaRound().quantize(unit, inputs, OPTIONS).weights[unit.name]
    grid = grid_of(unit.layer.weight, OPTIONS)
    assert torch.equal(found.scale, grid.scale)
    down = (unit.layer.weight.flatten(1) / grid.scale[:, None] + grid.zero_point[:, None]).floor()
    up = (down + 1).clamp(0, grid.max_code)
    codes = found.codes.float()
    assert ((codes == down.clamp(0, grid.max_code)) | (codes == up)).all()
    assert (codes != grid.encode(unit.layer.weight.flatten(1))).any()


def test_a_seed_gives_the_same_codes():
    def codes(seed: int) -> torch.Tensor:
        options = Options(bits=3, iterations=20, seed=seed)
        unit, inputs = unit_inputs(network(), "layer1.0.conv1", options)
        return AdaRound().quantize(unit, inputs, options).weights[unit.name].codes

    assert torch.equal(codes(0), codes(0))
    assert not torch.equal(codes(0), codes(1))
