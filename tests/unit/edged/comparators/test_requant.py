from __future__ import annotations

import pytest
import torch

from edged.comparators.method import Options
from edged.comparators.requant import Requant
from edged.quant.grid import Grid, minmax_grid
from tests.support.comparators import network, unit_inputs


@pytest.mark.parametrize("bits", [2, 4])
def test_one_share_of_the_full_range_with_little_error(bits: int):
    options = Options(bits=bits)
    unit, inputs = unit_inputs(network(), "layer2.0.conv1", options)
    (weight,) = Requant().quantize(unit, inputs, options).weights.values()
    W = unit.layer.weight.flatten(1)
    full = minmax_grid(W, bits, options.scheme)
    share = weight.scale / full.scale
    torch.testing.assert_close(share, share[:1].expand(len(share)))

    def error(share: float) -> float:
        grid = Grid(full.scale * share, full.zero_point, bits)
        return float((grid.nearest(W) - W).square().sum())

    found = float((weight.decode().flatten(1) - W).square().sum())
    assert found <= error(1.0)
    assert found <= 1.02 * min(error(share / 100) for share in range(5, 101))
