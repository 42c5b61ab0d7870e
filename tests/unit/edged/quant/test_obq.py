from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from edged.quant.fastobq import quantize_columns
from edged.quant.grid import Grid
from edged.quant.layer import quantize_layer
from edged.quant.objective import row_loss
from edged.quant.obq import quantize_rows_greedily
from edged.quant.rtn import round_to_nearest
from edged.spec import RECIPES, Method, Order, QuantSpec, Scheme, Search, recipe
from tests.support.quant_layers import damped, make_layer


def literal_obq(w: Tensor, H: Tensor, grid: Grid, outlier_rule: bool = True) -> list[int]:
    """Quantize one row (arXiv 2208.11580, Algorithm 3), inverting the free weights' Hessian before each choice."""
    w, codes, free = w.clone(), [0] * len(w), list(range(len(w)))
    while free:
        inverse = torch.linalg.inv(H[free][:, free])
        errors = [float((grid.nearest(w[None, j : j + 1])[0, 0] - w[j]) ** 2) for j in free]
        threshold = float(grid.scale[0] ** 2) / 4 * (1 + 1e-6)
        if outlier_rule and max(errors) > threshold:
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


def row_grid(grid: Grid, row: int) -> Grid:
    return Grid(grid.scale[row : row + 1], grid.zero_point[row : row + 1], grid.bits)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5),
    d=st.integers(1, 14),
    bits=st.integers(2, 6),
    seed=st.integers(0, 10_000),
    scheme=st.sampled_from(Scheme),
    rows_at_once=st.integers(1, 6),
)
def test_codes_equal_the_literal_method(rows: int, d: int, bits: int, seed: int, scheme: Scheme, rows_at_once: int):
    layer = make_layer(rows, d, bits, seed, scheme)
    found = quantize_rows_greedily(layer.W, layer.H, layer.grid, rows_at_once)
    for row in range(rows):
        assert found.codes[row].tolist() == literal_obq(layer.W[row], layer.H, row_grid(layer.grid, row))
    assert_close(found.loss, row_loss(layer.grid.decode(found.codes) - layer.W, layer.H))


def test_quantizing_weights_off_the_grid_first_lowers_the_loss():
    layer = make_layer(rows=8, d=16, bits=2, seed=5)
    grid = Grid(layer.grid.scale * 0.6, layer.grid.zero_point, 2)  # many weights are beyond its ends
    found = quantize_rows_greedily(layer.W, layer.H, grid)
    without = [literal_obq(layer.W[row], layer.H, row_grid(grid, row), outlier_rule=False) for row in range(8)]
    with_rule = [literal_obq(layer.W[row], layer.H, row_grid(grid, row)) for row in range(8)]
    assert found.codes.tolist() == with_rule
    assert with_rule != without
    late = row_loss(grid.decode(torch.tensor(without, dtype=torch.uint8)) - layer.W, layer.H)
    assert found.loss.sum() < 0.9 * late.sum()


@pytest.mark.parametrize("search", Search)
@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_on_the_grid_that_fastobq_would_use(name: str, search: Search):
    layer = make_layer(rows=5, d=20, bits=3)
    spec = recipe(name, bits=3, search=search, order=Order.SENSITIVITY)
    ours = quantize_layer(layer.W, layer.H[None], spec)
    obq = quantize_layer(layer.W, layer.H[None], recipe(name, bits=3, search=search, method=Method.OBQ))
    assert torch.equal(obq.weight.scale, ours.weight.scale)
    assert torch.equal(obq.weight.zero_point, ours.weight.zero_point)
    assert obq.order is Order.NONE


def test_quantize_layer_equals_the_literal_method_on_the_damped_hessian():
    layer = make_layer(rows=4, d=12, bits=3)
    result = quantize_layer(layer.W, layer.H[None], QuantSpec(bits=3, method=Method.OBQ, search=Search.MINMAX))
    for row in range(4):
        grid = row_grid(layer.grid, row)
        assert result.weight.codes[row].tolist() == literal_obq(layer.W[row], damped(layer.H, 0.01), grid)


def test_per_row_orders_beat_a_shared_order_and_both_beat_rounding():
    layer = make_layer(rows=24, d=48, bits=3)
    obq = quantize_rows_greedily(layer.W, layer.H, layer.grid).loss.sum()
    fast = quantize_columns(layer.W, layer.H, layer.grid, torch.arange(48)).loss.sum()
    nearest = round_to_nearest(layer.W, layer.H, layer.grid).loss.sum()
    assert obq < fast < nearest
