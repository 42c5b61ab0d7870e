from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from edged.quant.grid import minmax_grid, range_grid, row_range
from edged.quant.layer import quantize_layer
from edged.quant.objective import row_loss
from edged.quant.power_grid import PowerGrid
from edged.quant.requant import BRACKET_POINTS, EXPONENTS, LEAST_SHARE, TOLERANCE, estimated_grid, golden_section
from edged.spec import Levels, Method, QuantSpec, Scheme, Search
from tests.support.quant_layers import LAYERS, Layer, make_layer

SEARCHED = [search for search in Search if search is not Search.MINMAX]


def row_errors(W: Tensor, H: Tensor, W_hat: Tensor, search: Search) -> Tensor:
    """Return the error of each row that a search minimizes, written down a second time."""
    D = W_hat - W
    if search is Search.LOSS:
        return ((D @ H) * D).sum(1) / 2
    weight = H.diagonal() if search is Search.WEIGHTED else torch.ones(len(H), dtype=H.dtype)
    return (D.square() * weight).sum(1)


def least_errors(layer: Layer, spec: QuantSpec, shares: int) -> Tensor:
    """Return the least error over many shares: of each row, or of all rows together with Search.GOLDEN [1]."""
    low, high = row_range(layer.W, spec.scheme)
    tried = []
    for share in torch.linspace(LEAST_SHARE, 1, shares).tolist():
        grid = range_grid(low * share, high * share, spec.width, spec.scheme)
        tried.append(row_errors(layer.W, layer.H, grid.nearest(layer.W), spec.search))
    errors = torch.stack(tried)
    return errors.sum(1).min()[None] if spec.search is Search.GOLDEN else errors.min(0).values


def heavy_tailed(rows: int = 16, d: int = 288, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal, chi = (torch.randn(rows, d, k, generator=generator, dtype=torch.float64) for k in (1, 4))
    return normal[..., 0] / (chi.square().mean(2)).sqrt()  # Student's t with 4 degrees of freedom


@pytest.mark.parametrize("search", SEARCHED)
@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("bits", [2, 4])
def test_the_range_is_about_as_good_as_the_best_of_many(search: Search, scheme: Scheme, bits: int):
    layer = replace(make_layer(rows=16, d=48, seed=bits), W=heavy_tailed(16, 48))
    spec = QuantSpec(method=Method.REQUANT, bits=bits, scheme=scheme, search=search)
    grid = estimated_grid(layer.W, layer.H, spec)
    found = row_errors(layer.W, layer.H, grid.nearest(layer.W), search)
    if search is Search.GOLDEN:
        found = found.sum()[None]
    least = least_errors(layer, spec, shares=200)
    # So few weights make an error with many minima; sections end in one of the lowest.
    assert float(found.sum()) <= 1.25 * float(least.sum())


@settings(max_examples=25, deadline=None)
@given(layer=LAYERS, search=st.sampled_from(SEARCHED), scheme=st.sampled_from(Scheme))
def test_no_range_is_worse_than_the_full_one_or_the_brackets(layer: Layer, search: Search, scheme: Scheme):
    spec = QuantSpec(method=Method.REQUANT, bits=layer.grid.bits, scheme=scheme, search=search)
    found = row_errors(layer.W, layer.H, estimated_grid(layer.W, layer.H, spec).nearest(layer.W), search)
    if search is Search.GOLDEN:
        found = found.sum()[None]
    assert bool((found <= least_errors(layer, spec, BRACKET_POINTS) * (1 + 1e-9) + 1e-12).all())


def test_one_share_serves_all_rows_as_in_the_paper():
    W, spec = heavy_tailed(), QuantSpec(method=Method.REQUANT, bits=3, search=Search.GOLDEN, scheme=Scheme.SYMMETRIC)
    shares = estimated_grid(W, torch.eye(288, dtype=W.dtype), spec).scale / minmax_grid(W, 3, Scheme.SYMMETRIC).scale
    assert_close(shares, shares[:1].expand(16))
    assert float(shares[0]) < 0.9
    each = replace(spec, search=Search.MSE)
    assert len(estimated_grid(W, torch.eye(288, dtype=W.dtype), each).scale.unique()) == 16


@pytest.mark.parametrize(("bits", "share"), [(2, 0.5), (3, 0.7), (4, 0.9)])
def test_on_heavy_tails_the_error_is_far_below_that_of_the_full_range(bits: int, share: float):
    """Hold to the paper's claim in miniature: W with a few large weights in each row."""
    W, H = heavy_tailed(), torch.eye(288, dtype=torch.float64)[None]
    losses = [
        quantize_layer(W, H, QuantSpec(bits=bits, method=method, search=search, damp_ratio=0.0)).loss
        for method, search in (
            (Method.RTN, Search.MINMAX),
            (Method.REQUANT, Search.GOLDEN),
            (Method.REQUANT, Search.MSE),
        )
    ]
    assert losses[2] < losses[1] < share * losses[0]


def test_the_true_loss_is_lowest_where_it_is_what_the_search_minimizes():
    layer = make_layer(rows=12, d=64, bits=3)
    losses = {
        search: quantize_layer(layer.W, layer.H[None], QuantSpec(method=Method.REQUANT, bits=3, search=search)).loss
        for search in Search
    }
    assert min(losses, key=losses.__getitem__) is Search.LOSS


def test_rows_searched_together_do_not_change_the_range():
    layer = make_layer(rows=7, d=24)
    for search in SEARCHED:
        spec = QuantSpec(method=Method.REQUANT, search=search)
        whole = estimated_grid(layer.W, layer.H, spec)
        assert_close(estimated_grid(layer.W, layer.H, replace(spec, rows_at_once=2)).scale, whole.scale)


@given(
    minima=st.lists(st.floats(LEAST_SHARE, 1), min_size=1, max_size=5),
    exponents=st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=5, max_size=5),
)
def test_golden_sections_find_the_minimum_of_each_row(minima: list[float], exponents: list[float]):
    wanted, power = torch.tensor(minima, dtype=torch.float64), torch.tensor(exponents[: len(minima)])
    found = golden_section(lambda share: (share - wanted).abs() ** power, len(minima), wanted)
    assert bool(((found - wanted).abs() <= TOLERANCE).all())


def test_each_share_but_the_first_two_inner_ones_takes_one_evaluation():
    calls = 0

    def error(share: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (share - 0.4).square()

    golden_section(error, 3, torch.zeros(1))
    width = 2 * (1 - LEAST_SHARE) / (BRACKET_POINTS - 1)
    assert calls == BRACKET_POINTS + 2 + math.ceil(math.log(TOLERANCE / width) / math.log((math.sqrt(5) - 1) / 2))


def test_rows_of_zeros_and_of_one_value_are_kept():
    W = torch.tensor([[0.0, 0.0], [0.5, 0.5], [-3.0, 0.0]], dtype=torch.float64)
    spec = QuantSpec(method=Method.REQUANT, bits=4, search=Search.MSE)
    assert_close(estimated_grid(W, torch.eye(2, dtype=W.dtype), spec).nearest(W), W, atol=1e-12, rtol=1e-12)


def test_the_reported_loss_is_that_of_the_codes():
    layer = make_layer(rows=5, d=20)
    result = quantize_layer(layer.W, layer.H[None], QuantSpec(method=Method.REQUANT, bits=3))
    D = result.weight.decode().double() - layer.W
    assert result.loss == pytest.approx(float(row_loss(D, layer.H).sum()), rel=1e-9)


@pytest.mark.parametrize("search", Search)
@pytest.mark.parametrize("bits", [3, 4])
def test_power_levels_round_heavy_tails_with_less_error(search: Search, bits: int):
    W, H = heavy_tailed(), torch.eye(288, dtype=torch.float64)[None]
    losses = []
    for levels in Levels:
        spec = QuantSpec(method=Method.REQUANT, bits=bits, search=search, levels=levels, damp_ratio=0.0)
        result = quantize_layer(W, H, spec)
        D = result.weight.decode().double() - W
        assert result.loss == pytest.approx(float(D.square().sum() / 2), rel=1e-6)
        assert result.weight.is_uniform == (levels is Levels.UNIFORM)
        losses.append(result.loss)
    assert losses[1] < 0.9 * losses[0]


@settings(max_examples=15, deadline=None)
@given(layer=LAYERS, search=st.sampled_from([Search.MSE, Search.WEIGHTED]), scheme=st.sampled_from(Scheme))
def test_exponents_of_rows_are_never_worse_than_uniform_levels(layer: Layer, search: Search, scheme: Scheme):
    spec = QuantSpec(method=Method.REQUANT, bits=layer.grid.bits, scheme=scheme, search=search)
    uniform, power = (
        row_errors(
            layer.W,
            layer.H,
            estimated_grid(layer.W, layer.H, replace(spec, levels=levels)).nearest(layer.W),
            search,
        )
        for levels in Levels
    )
    # An exponent of 1 is tried, too; ties of rounding may lead its search elsewhere.
    assert bool((power <= uniform * (1 + 1e-6) + 1e-12).all())


def test_one_exponent_serves_all_rows_that_share_a_range():
    spec = QuantSpec(method=Method.REQUANT, bits=4, search=Search.GOLDEN, levels=Levels.POWER)
    grid = estimated_grid(heavy_tailed(), torch.eye(288, dtype=torch.float64), spec)
    assert isinstance(grid, PowerGrid)
    assert len(grid.exponent.unique()) == 1
    assert int(grid.exponent[0]) in EXPONENTS[1:]


def test_each_conv_group_has_exponents_of_its_own():
    W = heavy_tailed(6, 18).reshape(6, 2, 3, 3)
    H = torch.eye(18, dtype=torch.float64).repeat(3, 1, 1)
    spec = QuantSpec(method=Method.REQUANT, bits=4, levels=Levels.POWER)
    whole = quantize_layer(W, H, spec).weight
    parts = [quantize_layer(W[i : i + 2], H[:1], spec).weight.decode() for i in (0, 2, 4)]
    assert torch.equal(whole.decode(), torch.cat(parts))
