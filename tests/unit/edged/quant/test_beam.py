from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from edged.quant.beam import quantize_with_beam
from edged.quant.fastobq import QuantizedRows, quantize_with_factor
from edged.quant.grid import Grid
from edged.quant.linalg import factorize
from edged.quant.objective import row_loss
from edged.quant.rtn import round_to_nearest
from tests.support.quant_layers import LAYERS, Layer, make_layer


def beam(layer: Layer, width: int, order: Tensor | None = None, block_size: int = 7, **options: int) -> QuantizedRows:
    order = torch.arange(layer.W.shape[1]) if order is None else order
    return quantize_with_beam(
        layer.W, factorize(layer.H, order).take_upper(), layer.grid, order, width, block_size, **options
    )


def two_nearest(wanted: float, scale: float, zero_point: int, codes: int) -> list[int]:
    return sorted(range(codes), key=lambda code: abs(scale * (code - zero_point) - wanted))[:2]


def least_loss_in_the_tree(w: Tensor, H: Tensor, grid: Grid) -> float:
    """Search all 2**d leaves of one row in stored order, re-solving least squares for each column's target."""
    d, best = len(w), float("inf")
    for choices in itertools.product((0, 1), repeat=d):
        delta = torch.zeros(d, dtype=w.dtype)
        for j, choice in enumerate(choices):
            shift = torch.linalg.solve(H[j:, j:], H[j:, :j] @ delta[:j])[0] if j else 0.0
            scale, zero_point = float(grid.scale[0]), int(grid.zero_point[0])
            code = two_nearest(float(w[j] - shift), scale, zero_point, 2**grid.bits)[choice]
            delta[j] = scale * (code - zero_point) - w[j]
        best = min(best, float(delta @ H @ delta) / 2)
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [2, 3])
def test_a_full_beam_finds_the_best_leaf_of_the_two_nearest_tree(seed: int, bits: int):
    layer = make_layer(rows=2, d=5, bits=bits, seed=seed)
    found = beam(layer, width=2**5, block_size=2).loss
    for row in range(2):
        grid = Grid(layer.grid.scale[row : row + 1], layer.grid.zero_point[row : row + 1], bits)
        assert float(found[row]) == pytest.approx(least_loss_in_the_tree(layer.W[row], layer.H, grid), rel=1e-9)


def test_a_full_beam_is_nearly_always_the_best_of_all_codes():
    every = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.uint8)
    gaps = []
    for seed in range(20):
        layer = make_layer(rows=1, d=5, bits=2, seed=seed)
        best = row_loss(layer.grid.decode(every) - layer.W, layer.H).min()
        found = float(beam(layer, width=32).loss)
        gaps.append(found / float(best) - 1)
    assert min(gaps) > -1e-9
    assert sum(gap < 1e-9 for gap in gaps) >= 18


@settings(max_examples=40, deadline=None)
@given(layer=LAYERS, seed=st.integers(0, 1000))
def test_width_one_is_the_greedy_choice(layer: Layer, seed: int):
    order = torch.randperm(layer.W.shape[1], generator=torch.Generator().manual_seed(seed))
    greedy = quantize_with_factor(layer.W, factorize(layer.H, order).take_upper(), layer.grid, order)
    found = beam(layer, 1, order)
    assert torch.equal(found.codes, greedy.codes)
    assert_close(found.loss, greedy.loss)


@settings(max_examples=40, deadline=None)
@given(layer=LAYERS, width=st.integers(1, 9), block_size=st.integers(1, 25), rows_at_once=st.integers(1, 6))
def test_loss_is_that_of_the_codes_for_every_block_size(layer: Layer, width: int, block_size: int, rows_at_once: int):
    order = torch.arange(layer.W.shape[1] - 1, -1, -1)
    whole = beam(layer, width, order, block_size=64)
    parts = beam(layer, width, order, block_size, rows_at_once=rows_at_once)
    assert torch.equal(whole.codes, parts.codes)
    assert_close(whole.loss, row_loss(layer.grid.decode(whole.codes) - layer.W, layer.H), rtol=1e-7, atol=1e-12)
    assert int(whole.codes.max()) <= layer.grid.max_code


@settings(max_examples=30, deadline=None)
@given(layer=LAYERS, width=st.integers(1, 6))
def test_rows_are_independent(layer: Layer, width: int):
    whole = beam(layer, width).codes
    for row in range(len(layer.W)):
        part = slice(row, row + 1)
        grid = Grid(layer.grid.scale[part], layer.grid.zero_point[part], layer.grid.bits)
        assert torch.equal(beam(Layer(layer.W[part], layer.H, grid), width).codes, whole[part])


def test_identity_hessian_gives_round_to_nearest(layer: Layer):
    identity = torch.eye(24, dtype=torch.float64)
    found = beam(Layer(layer.W, identity, layer.grid), 4)
    assert torch.equal(found.codes, round_to_nearest(layer.W, identity, layer.grid).codes)


def test_four_paths_have_a_lower_total_loss_than_one():
    layer = make_layer(rows=32, d=48, bits=3, seed=7)
    losses = [float(beam(layer, width).loss.sum()) for width in (1, 2, 4, 16)]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.95 * losses[0]


def test_inputs_are_not_modified(layer: Layer):
    order = torch.arange(24)
    R = factorize(layer.H, order).take_upper()
    before = layer.W.clone(), R.clone()
    quantize_with_beam(layer.W, R, layer.grid, order, 3)
    assert torch.equal(layer.W, before[0])
    assert torch.equal(R, before[1])
