from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from edged.quant.grid import Grid, minmax_grid, row_range
from edged.quant.power_grid import (
    MOST_SIXTEENTHS,
    SIXTEENTHS,
    UNIFORM,
    PowerGrid,
    PowerWeight,
    joined,
    magnitudes,
    power_range_grid,
)
from edged.spec import Scheme

EXPONENTS = st.integers(UNIFORM, MOST_SIXTEENTHS)


def power_grid(W: Tensor, bits: int, scheme: Scheme, sixteenths: list[int]) -> PowerGrid:
    return power_range_grid(*row_range(W, scheme), bits, scheme, torch.tensor(sixteenths, dtype=torch.uint8))


def weights_of(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def all_values(grid: PowerGrid) -> Tensor:
    """Return the values of all codes of each row [rows, 2**bits], one by one."""
    rows = [
        [
            math.copysign(float(scale) * abs(code - int(zero)) ** (int(e) / SIXTEENTHS), code - int(zero))
            for code in range(grid.max_code + 1)
        ]
        for scale, zero, e in zip(grid.scale, grid.zero_point, grid.exponent, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(
    exponents=st.lists(EXPONENTS, min_size=1, max_size=4),
    columns=st.integers(1, 30),
    bits=st.integers(2, 8),
    scheme=st.sampled_from(Scheme),
    seed=st.integers(0, 10_000),
)
def test_a_code_is_that_of_the_nearest_of_all_levels(
    exponents: list[int], columns: int, bits: int, scheme: Scheme, seed: int
):
    W = weights_of(len(exponents), columns, seed)
    grid = power_grid(W, bits, scheme, exponents)
    codes = grid.encode(1.3 * W)  # some beyond the range
    assert codes.dtype is torch.uint8
    values = all_values(grid)
    nearest = (1.3 * W[:, :, None] - values[:, None, :]).abs().min(2).values
    assert_close((1.3 * W - grid.decode(codes)).abs(), nearest, rtol=1e-6, atol=1e-6)
    assert_close(grid.decode(codes), values.gather(1, codes.long()), rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    exponents=st.lists(EXPONENTS, min_size=1, max_size=4),
    bits=st.integers(2, 8),
    scheme=st.sampled_from(Scheme),
    seed=st.integers(0, 10_000),
)
def test_every_code_survives_decoding_and_encoding(exponents: list[int], bits: int, scheme: Scheme, seed: int):
    grid = power_grid(weights_of(len(exponents), 9, seed), bits, scheme, exponents)
    codes = torch.arange(1 << bits, dtype=torch.uint8).expand(len(exponents), -1)
    assert torch.equal(grid.encode(grid.decode(codes)), codes)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_with_the_exponent_one_it_is_the_uniform_grid(bits: int):
    W = weights_of(6, 200, seed=bits)
    for scheme in Scheme:
        uniform, grid = minmax_grid(W, bits, scheme), power_grid(W, bits, scheme, [UNIFORM] * 6)
        assert_close(grid.scale, uniform.scale)
        assert torch.equal(grid.encode(W), uniform.encode(W))
        assert_close(grid.nearest(W), uniform.nearest(W))


def test_the_range_is_spanned_and_levels_are_dense_around_zero():
    W = weights_of(4, 500, seed=0)
    grid = power_grid(W, 4, Scheme.SYMMETRIC, [24] * 4)
    values = all_values(grid)
    assert_close(values[:, -1], W.abs().amax(1))
    gaps = values.diff(dim=1)
    assert bool((gaps[:, 8:].diff(dim=1) > 0).all())
    assert bool((gaps[:, 7] < gaps[:, -1] / 3).all())


def test_no_level_depends_on_how_a_platform_rounds_powers():
    """Check that in float64 no power is so close to the middle of two float32 values that a few ulp would matter."""
    steps = torch.arange(2, 256, dtype=torch.float64)
    for sixteenths in range(UNIFORM, MOST_SIXTEENTHS + 1):
        power = steps ** (sixteenths / SIXTEENTHS)
        for away in (1 - 1e-14, 1 + 1e-14):
            assert torch.equal((power * away).float(), power.float())
        table = magnitudes(torch.tensor([sixteenths], dtype=torch.uint8), 8)[0]
        exact = [float(Fraction(k) ** sixteenths) ** (1 / SIXTEENTHS) for k in range(256)]  # by another way
        assert torch.equal(table, torch.tensor(exact, dtype=torch.float64).float())


def test_a_weight_decodes_to_its_shape_and_moves_as_a_whole():
    W = weights_of(6, 18, seed=1)
    grid = power_grid(W, 3, Scheme.ASYMMETRIC, [16, 20, 24, 28, 40, 48])
    weight = grid.quantized(grid.encode(W), (6, 2, 3, 3))
    assert (weight.is_uniform, weight.decode().shape, weight.decode().dtype) == (False, (6, 2, 3, 3), torch.float32)
    assert_close(weight.decode().flatten(1).double(), grid.nearest(W), rtol=1e-6, atol=1e-7)
    moved = weight.to(torch.device("cpu"))
    assert isinstance(moved, PowerWeight)
    assert torch.equal(moved.decode(), weight.decode())


def test_rows_of_zeros_are_zeros():
    grid = power_grid(torch.zeros(2, 5, dtype=torch.float64), 4, Scheme.ASYMMETRIC, [16, 32])
    assert torch.equal(grid.nearest(torch.zeros(2, 5, dtype=torch.float64)), torch.zeros(2, 5, dtype=torch.float64))
    tiny = torch.full((1, 5), 1e-37, dtype=torch.float64)
    quantized = power_grid(tiny, 2, Scheme.SYMMETRIC, [48])
    assert bool(quantized.quantized(quantized.encode(tiny), (1, 5)).decode().isfinite().all())


def test_grids_of_one_kind_are_joined():
    W = weights_of(5, 9, seed=2)
    whole, uniform = power_grid(W, 4, Scheme.SYMMETRIC, [16, 18, 20, 22, 24]), minmax_grid(W, 4, Scheme.SYMMETRIC)
    parts = joined(
        [
            power_grid(W[:2], 4, Scheme.SYMMETRIC, [16, 18]),
            power_grid(W[2:], 4, Scheme.SYMMETRIC, [20, 22, 24]),
        ]
    )
    assert isinstance(parts, PowerGrid)
    assert torch.equal(parts.nearest(W), whole.nearest(W))
    again = joined([minmax_grid(W[:1], 4, Scheme.SYMMETRIC), minmax_grid(W[1:], 4, Scheme.SYMMETRIC)])
    assert type(again) is Grid
    assert torch.equal(again.nearest(W), uniform.nearest(W))
