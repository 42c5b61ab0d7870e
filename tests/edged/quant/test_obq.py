from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edged.quant.fastobq import quantize_columns
from edged.quant.grid import Grid
from edged.quant.obq import quantize_rows_greedily
from edged.quant.rtn import round_to_nearest
from tests.edged.quant.conftest import make_layer


def literal_obq(w: Tensor, H: Tensor, grid: Grid) -> list[int]:
    """One row: re-invert the Hessian of the free weights before each choice."""
    w, codes, free = w.clone(), [0] * len(w), list(range(len(w)))
    while free:
        inverse = torch.linalg.inv(H[free][:, free])
        errors = [float((grid.nearest(w[None, j : j + 1])[0, 0] - w[j]) ** 2) for j in free]
        threshold = float(grid.scale[0] ** 2) / 4 * (1 + 1e-6)
        if max(errors) > threshold:
            k = errors.index(max(errors))
        else:
            costs = [error / float(inverse[i, i]) for i, error in enumerate(errors)]
            k = costs.index(min(costs))
        j = free[k]
        codes[j] = int(grid.encode(w[None, j : j + 1])[0, 0])
        error = w[j] - grid.nearest(w[None, j : j + 1])[0, 0]
        w[free] -= error / inverse[k, k] * inverse[k]
        free.remove(j)
    return codes


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rows_at_once", [1, 4])
def test_codes_equal_the_literal_method(bits: int, rows_at_once: int):
    layer = make_layer(rows=5, d=16, bits=bits, seed=bits)
    found = quantize_rows_greedily(layer.W, layer.H, layer.grid, rows_at_once).codes
    for row in range(5):
        grid = Grid(layer.grid.scale[row : row + 1], layer.grid.zero_point[row : row + 1], bits)
        assert found[row].tolist() == literal_obq(layer.W[row], layer.H, grid)


def test_an_order_for_each_row_beats_a_shared_one_and_both_beat_rounding():
    layer = make_layer(rows=24, d=48, bits=3)
    obq = quantize_rows_greedily(layer.W, layer.H, layer.grid).loss.sum()
    fast = quantize_columns(layer.W, layer.H, layer.grid, torch.arange(48)).loss.sum()
    nearest = round_to_nearest(layer.W, layer.H, layer.grid).loss.sum()
    assert obq < fast < nearest
