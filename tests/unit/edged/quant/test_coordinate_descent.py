from __future__ import annotations

import torch
from torch.testing import assert_close

from edged.quant.coordinate_descent import descend
from edged.quant.objective import row_loss
from edged.quant.rtn import round_to_nearest
from tests.support.quant_layers import Layer


def test_no_row_gets_worse_and_the_loss_is_that_of_the_codes(layer: Layer):
    start = round_to_nearest(layer.W, layer.H, layer.grid)
    better = descend(layer.W, layer.H, layer.grid, start, passes=3)
    assert bool((better.loss <= start.loss + 1e-12).all())
    assert better.loss.sum() < 0.8 * start.loss.sum()
    assert_close(better.loss, row_loss(layer.grid.decode(better.codes) - layer.W, layer.H))


def test_converged_codes_cannot_be_improved_one_by_one(layer: Layer):
    codes = descend(layer.W, layer.H, layer.grid, round_to_nearest(layer.W, layer.H, layer.grid), passes=50).codes
    best = row_loss(layer.grid.decode(codes) - layer.W, layer.H)
    for j in range(layer.W.shape[1]):
        for code in range(2**layer.grid.bits):
            changed = codes.clone()
            changed[:, j] = code
            assert bool((row_loss(layer.grid.decode(changed) - layer.W, layer.H) >= best - 1e-9).all())


def test_zero_passes_change_nothing(layer: Layer):
    start = round_to_nearest(layer.W, layer.H, layer.grid)
    assert torch.equal(descend(layer.W, layer.H, layer.grid, start, passes=0).codes, start.codes)
