from __future__ import annotations

import torch
from torch.testing import assert_close

from edged.comparators.method import Options, grid_of
from edged.quant.grid import minmax_grid
from edged.spec import Scheme


def test_the_grid_rounds_with_less_error_than_the_full_range():
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    W = weight.flatten(1)
    for scheme in Scheme:
        grid = grid_of(weight, Options(bits=3, scheme=scheme))
        full = minmax_grid(W, 3, scheme)
        assert ((grid.nearest(W) - W).square().sum(1) <= (full.nearest(W) - W).square().sum(1)).all()
        assert (grid.scale < full.scale).any()


def test_a_symmetric_grid_has_zero_in_the_middle():
    grid = grid_of(torch.rand(5, 8), Options(bits=4, scheme=Scheme.SYMMETRIC))
    assert_close(grid.zero_point, torch.full((5,), 8.0))
