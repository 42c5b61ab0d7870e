from __future__ import annotations

import torch
from torch.testing import assert_close

from edged.quant.fastobq import quantize_columns
from edged.quant.grid import Grid, minmax_grid, range_grid, row_range
from edged.quant.linalg import factorize
from edged.quant.scale_search import REFINE, quantize_with_golden_section, quantize_with_search, weighted_grid
from edged.spec import Scheme
from tests.support.quant_layers import make_layer


def test_weighted_grid_is_never_worse_than_the_full_range():
    W = torch.randn(8, 100, dtype=torch.float64)
    W[:, 0] *= 10  # outliers make clipping worthwhile
    weight = torch.rand(100, dtype=torch.float64)
    full = minmax_grid(W, 4, Scheme.SYMMETRIC)
    found = weighted_grid(W, weight, 4, Scheme.SYMMETRIC)
    error = (found.nearest(W) - W).square() @ weight
    assert bool((error <= (full.nearest(W) - W).square() @ weight).all())
    assert bool((found.scale < full.scale).any())


def test_search_keeps_each_rows_best_candidate():
    layer = make_layer(rows=5, d=16, bits=3)
    order = torch.arange(16)
    grid, quantized = quantize_with_search(
        layer.W, factorize(layer.H, order).take_upper(), layer.grid, order, rows_at_once=2
    )
    one_by_one = torch.stack(
        [
            quantize_columns(layer.W, layer.H, Grid(layer.grid.scale * factor, layer.grid.zero_point, 3), order).loss
            for factor in REFINE
        ]
    )
    assert_close(quantized.loss, one_by_one.min(0).values)
    D = grid.decode(quantized.codes) - layer.W
    assert_close(((D @ layer.H) * D).sum(1) / 2, quantized.loss)


def test_golden_section_beats_the_full_range_and_is_near_the_best_of_many():
    layer = make_layer(rows=8, d=32, bits=2)
    order = torch.arange(32)
    R = factorize(layer.H, order).take_upper()
    _, found = quantize_with_golden_section(layer.W, R, 2, Scheme.ASYMMETRIC, order)
    low, high = row_range(layer.W, Scheme.ASYMMETRIC)
    losses = [
        float(quantize_columns(layer.W, layer.H, range_grid(low * f, high * f, 2, Scheme.ASYMMETRIC), order).loss.sum())
        for f in torch.linspace(0.3, 1.0, 60).tolist()
    ]
    assert float(found.loss.sum()) < losses[-1]
    assert float(found.loss.sum()) < 1.15 * min(losses)
