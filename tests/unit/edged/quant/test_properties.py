"""Properties of every layer: invariances, and optional steps that never raise the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from edged.quant.beam import quantize_with_beam
from edged.quant.coordinate_descent import descend
from edged.quant.fastobq import QuantizedRows, quantize_columns, quantize_with_factor
from edged.quant.grid import Grid
from edged.quant.layer import BEST_OF, quantize_layer
from edged.quant.linalg import factorize
from edged.quant.objective import row_loss
from edged.quant.obq import quantize_rows_greedily
from edged.quant.rtn import round_to_nearest
from edged.quant.scale_search import quantize_with_search
from edged.spec import Method, Order, QuantSpec, Search
from tests.support.quant_layers import LAYERS, Layer, make_layer

Solver = Callable[[Tensor, Tensor, Grid, Tensor], QuantizedRows]


def searched(W: Tensor, H: Tensor, grid: Grid, order: Tensor) -> QuantizedRows:
    return quantize_with_search(W, factorize(H, order).take_upper(), grid, order)[1]


def beamed(W: Tensor, H: Tensor, grid: Grid, order: Tensor) -> QuantizedRows:
    return quantize_with_beam(W, factorize(H, order).take_upper(), grid, order, width=3, block_size=5)


def descended(W: Tensor, H: Tensor, grid: Grid, order: Tensor) -> QuantizedRows:
    return descend(W, H, grid, quantize_columns(W, H, grid, order), passes=2)


def greedy_rows(W: Tensor, H: Tensor, grid: Grid, _: Tensor) -> QuantizedRows:
    return quantize_rows_greedily(W, H, grid)


SOLVERS: list[Solver] = [quantize_columns, searched, beamed, descended, greedy_rows]


def rows_of(grid: Grid, rows: slice | Tensor) -> Grid:
    return Grid(grid.scale[rows], grid.zero_point[rows], grid.bits)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=12, deadline=None)
@given(layer=LAYERS, seed=st.integers(0, 1000))
def test_rows_are_independent_and_may_be_permuted(solver: Solver, layer: Layer, seed: int):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(layer.W.shape[1], generator=generator)
    places = torch.randperm(layer.W.shape[0], generator=generator)
    whole = solver(layer.W, layer.H, layer.grid, order)
    moved = solver(layer.W[places], layer.H, rows_of(layer.grid, places), order)
    assert torch.equal(moved.codes, whole.codes[places])
    alone = solver(layer.W[:1], layer.H, rows_of(layer.grid, slice(0, 1)), order)
    assert torch.equal(alone.codes, whole.codes[:1])
    assert_close(alone.loss, whole.loss[:1])


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s is not descended])  # descent visits columns as stored
@settings(max_examples=12, deadline=None)
@given(layer=LAYERS, seed=st.integers(0, 1000))
def test_the_stored_order_of_columns_does_not_matter(solver: Solver, layer: Layer, seed: int):
    generator = torch.Generator().manual_seed(seed)
    order, places = (torch.randperm(layer.W.shape[1], generator=generator) for _ in range(2))
    whole = solver(layer.W, layer.H, layer.grid, order)
    # Column places[k] is now stored at k, so the order is translated to visit the same columns.
    moved = solver(layer.W[:, places], layer.H[places][:, places], layer.grid, places.argsort()[order])
    assert torch.equal(moved.codes, whole.codes[:, places])
    assert_close(moved.loss, whole.loss)


@pytest.mark.parametrize("rule", [Order.SENSITIVITY, Order.ERROR, Order.WEIGHT, Order.HESSIAN, Order.MIN_PIVOT])
def test_a_layer_does_not_depend_on_the_stored_order_of_its_inputs(rule: Order):
    for seed in range(5):
        layer = make_layer(rows=4, d=16, seed=seed)
        places = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        spec = QuantSpec(bits=3, order=rule, beam=2)
        whole = quantize_layer(layer.W, layer.H[None], spec).weight.codes
        moved = quantize_layer(layer.W[:, places], layer.H[places][:, places][None], spec).weight.codes
        assert torch.equal(moved, whole[:, places])


@settings(max_examples=40, deadline=None)
@given(layer=LAYERS, passes=st.integers(1, 3), greedy=st.booleans())
def test_descent_raises_no_row(layer: Layer, passes: int, greedy: bool):
    order = torch.arange(layer.W.shape[1])
    start = (
        quantize_columns(layer.W, layer.H, layer.grid, order)
        if greedy
        else round_to_nearest(layer.W, layer.H, layer.grid)
    )
    found = descend(layer.W, layer.H, layer.grid, start, passes)
    after = row_loss(layer.grid.decode(found.codes) - layer.W, layer.H)
    before = row_loss(layer.grid.decode(start.codes) - layer.W, layer.H)
    assert bool((after <= before).all())
    assert_close(found.loss, after)


def test_descent_that_raises_the_loss_is_discarded():
    layer = make_layer(rows=16, d=24, bits=3)
    order = torch.arange(24)
    lopsided = layer.H.triu()  # the same losses up to a factor, but gradients that miss half of it
    start = descend(layer.W, layer.H, layer.grid, quantize_columns(layer.W, layer.H, layer.grid, order), passes=9)
    found = descend(layer.W, lopsided, layer.grid, start, passes=1)
    before = row_loss(layer.grid.decode(start.codes) - layer.W, lopsided)
    assert bool((row_loss(layer.grid.decode(found.codes) - layer.W, lopsided) <= before).all())


# Each option and the settings that switch it off, whose loss it must not exceed.
OPTIONS = {
    "beam": (QuantSpec(beam=4), QuantSpec()),
    "beam of two": (QuantSpec(beam=2, search=Search.MINMAX), QuantSpec(search=Search.MINMAX)),
    "descent": (QuantSpec(descent_passes=2), QuantSpec()),
    "descent after a beam": (QuantSpec(beam=4, descent_passes=1), QuantSpec(beam=4)),
    "search by loss": (QuantSpec(search=Search.LOSS), QuantSpec(search=Search.WEIGHTED)),
    "golden section": (QuantSpec(search=Search.GOLDEN), QuantSpec(search=Search.WEIGHTED)),
    **{f"best order, not {rule.value}": (QuantSpec(order=Order.BEST), QuantSpec(order=rule)) for rule in BEST_OF},
}


@pytest.mark.parametrize("option", OPTIONS)
@settings(max_examples=12, deadline=None)
@given(layer=LAYERS, descending=st.booleans())
def test_no_option_raises_the_loss_of_a_layer(option: str, layer: Layer, descending: bool):
    # Without damping the loss that decides is the reported one; scales are rounded to float32 at the end.
    common = {"damp_ratio": 0.0, "bits": layer.grid.bits, "descending": descending}
    asked, without = (dataclasses.replace(spec, **common) for spec in OPTIONS[option])
    found, before = (quantize_layer(layer.W, layer.H[None], spec).loss for spec in (asked, without))
    assert found <= before * (1 + 1e-5) + 1e-12


@settings(max_examples=20, deadline=None)
@given(
    layer=LAYERS,
    method=st.sampled_from(Method),
    search=st.sampled_from(Search),
    order=st.sampled_from(Order),
    beam=st.integers(1, 3),
    block_size=st.integers(1, 20),
)
def test_loss_is_that_of_the_codes_for_any_options_and_block_size(
    layer: Layer, method: Method, search: Search, order: Order, beam: int, block_size: int
):
    spec = QuantSpec(bits=3, method=method, search=search, order=order, beam=beam, descent_passes=1)
    result = quantize_layer(layer.W, layer.H[None], spec)
    D = result.weight.decode().double() - layer.W
    assert result.loss == pytest.approx(float(((D @ layer.H) * D).sum() / 2), rel=1e-9, abs=1e-12)
    blocked = quantize_layer(layer.W, layer.H[None], dataclasses.replace(spec, block_size=block_size))
    assert torch.equal(blocked.weight.codes, result.weight.codes)


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_is_accepted_row_by_row(seed: int):
    layer = make_layer(rows=8, d=12, bits=2, seed=seed)
    order = torch.arange(12)
    R = factorize(layer.H, order).take_upper()
    greedy = quantize_with_factor(layer.W, R, layer.grid, order)
    pair = quantize_with_beam(layer.W, R, layer.grid, order, 2)
    spec = QuantSpec(bits=2, damp_ratio=0.0, order=Order.NONE, search=Search.MINMAX, beam=2)
    found = quantize_layer(layer.W, layer.H[None], spec).weight.codes
    expected = torch.where((pair.loss < greedy.loss)[:, None], pair.codes, greedy.codes)
    assert torch.equal(found, expected)
