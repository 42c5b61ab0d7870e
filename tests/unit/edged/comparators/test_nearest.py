from __future__ import annotations

import torch

from edged.comparators.method import Options, grid_of
from edged.comparators.nearest import nearest
from edged.comparators.units import find_units
from tests.support.comparators import network


def test_no_other_value_of_the_grid_is_closer_to_any_weight():
    options = Options(bits=2)
    (block,) = (unit for unit in find_units(network(), blockwise=True) if unit.name == "layer2.0")
    weights = nearest(block, options).weights
    assert set(weights) == set(block.layers)
    for name, weight in weights.items():
        W = block.layers[name].weight.flatten(1)
        grid = grid_of(block.layers[name].weight, options)
        found = (weight.decode().flatten(1) - W).abs()
        for code in range(4):
            assert (found <= (grid.decode(torch.full_like(W, code)) - W).abs() + 1e-6).all()
