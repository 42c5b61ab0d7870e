from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from edged.quant.grid import Grid, minmax_grid
from edged.spec import Scheme


@given(bits=st.integers(2, 8), seed=st.integers(0, 1000), scheme=st.sampled_from(Scheme))
def test_encode_inverts_decode(bits: int, seed: int, scheme: Scheme):
    W = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = minmax_grid(W, bits, scheme)
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(3, 1)
    assert torch.equal(grid.encode(grid.decode(codes)), codes)


@given(bits=st.integers(2, 8), seed=st.integers(0, 1000), scheme=st.sampled_from(Scheme))
def test_no_weight_inside_the_range_moves_more_than_half_a_step(bits: int, seed: int, scheme: Scheme):
    W = torch.randn(4, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = minmax_grid(W, bits, scheme)
    # Rounding the zero_point shifts an asymmetric range by up to half a step.
    allowed = grid.scale[:, None] * (1.0 if scheme is Scheme.ASYMMETRIC else 0.5)
    assert bool(((grid.nearest(W) - W).abs() <= allowed * (1 + 1e-9)).all())


@pytest.mark.parametrize("scheme", list(Scheme))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_is_exact(scheme: Scheme, bits: int):
    W = torch.tensor([[-3.0, 0.0, 1.0], [2.0, 0.0, 5.0], [-7.0, 0.0, -1.0]])
    grid = minmax_grid(W, bits, scheme)
    assert torch.equal(grid.nearest(W)[:, 1], torch.zeros(3))


def test_symmetric_zero_point_is_the_middle_code():
    grid = minmax_grid(torch.randn(5, 9), 4, Scheme.SYMMETRIC)
    assert torch.equal(grid.zero_point, torch.full((5,), 8.0))


def test_a_row_of_zeros_stays_zero():
    grid = minmax_grid(torch.zeros(2, 7), 4, Scheme.ASYMMETRIC)
    assert torch.equal(grid.nearest(torch.zeros(2, 7)), torch.zeros(2, 7))


def test_stored_weight_decodes_to_the_grid():
    W = torch.randn(6, 4, 3, 3)
    grid = minmax_grid(W.flatten(1), 4, Scheme.ASYMMETRIC)
    stored = grid.quantized(grid.encode(W.flatten(1)), tuple(W.shape))
    assert stored.decode().shape == W.shape
    assert torch.equal(stored.decode().flatten(1), grid.nearest(W.flatten(1)))


def test_out_of_range_values_are_clipped_to_the_ends():
    grid = Grid(torch.tensor([0.5]), torch.tensor([2.0]), 2)
    assert_close(grid.nearest(torch.tensor([[-9.0, 9.0]])), torch.tensor([[-1.0, 0.5]]))
