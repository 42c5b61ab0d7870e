"""Search of each row's range: clipping accepts large errors in few weights for small errors in all others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edged.quant.fastobq import QuantizedRows, quantize_with_factor
from edged.quant.grid import Grid, range_grid, row_range
from edged.spec import Scheme

# Factors on a row's full range, compared by weighted rounding error.
SHRINK = tuple(round(1 - 0.03 * i, 2) for i in range(26))
# Golden-section search narrows [GOLDEN_LOW, 1] GOLDEN_STEPS times, to a width of 0.004.
GOLDEN_LOW, GOLDEN_STEPS = 0.3, 11
# Factors on the best range so far, compared by the true loss after compensation.
REFINE = (0.8, 0.87, 0.94, 1.0, 1.07, 1.15)


def weighted_grid(W: Tensor, weight: Tensor, bits: int, scheme: Scheme) -> Grid:
    """Find for each row the shrunk range with the lowest rounding error sum_j weight_j (quant(w_j) - w_j)^2.

    Args:
        W: Weights [rows, d]. Not modified.
        weight: Weight of each column's error [d]: diag(H), or ones for the plain squared error.
        bits: Bits per code.
        scheme: Kind of grid.

    Returns:
        The grid of the chosen ranges, one scale per row.
    """
    low, high = row_range(W, scheme)
    best = torch.full_like(low, torch.inf)
    factor = torch.ones_like(low)
    for shrink in SHRINK:
        grid = range_grid(low * shrink, high * shrink, bits, scheme)
        error = (grid.nearest(W) - W).square_() @ weight
        better = error < best
        best = torch.where(better, error, best)
        factor = torch.where(better, torch.full_like(factor, shrink), factor)
    return range_grid(low * factor, high * factor, bits, scheme)


def quantize_with_search(
    W: Tensor, R: Tensor, grid: Grid, order: Tensor, block_size: int = 256, rows_at_once: int = 512
) -> tuple[Grid, QuantizedRows]:
    """Quantize every row on several scalings of its grid and keep the scaling with the lowest loss per row.

    The scaled copies are additional rows of one problem, so all of them share one factor.

    Args:
        W: Weights [rows, d]. Not modified.
        R: Upper factor of the damped, permuted Hessian [d, d]. Not modified.
        grid: Grid whose scales are multiplied by REFINE.
        order: Column order of R, a permutation of range(d).
        block_size: Columns per lazy update; changes speed only.
        rows_at_once: Rows whose copies are processed together; bounds memory, does not change the result.

    Returns:
        The chosen grid, the codes on it [rows, d] and their loss [rows], in squared output units.
    """
    parts = [
        _search_rows(W[part], R, Grid(grid.scale[part], grid.zero_point[part], grid.bits), order, block_size)
        for part in (slice(start, start + rows_at_once) for start in range(0, len(W), rows_at_once))
    ]
    scale, zero_point = (torch.cat([getattr(found, name) for found, _ in parts]) for name in ("scale", "zero_point"))
    codes, loss = (torch.cat([getattr(rows, name) for _, rows in parts]) for name in ("codes", "loss"))
    return Grid(scale, zero_point, grid.bits), QuantizedRows(codes, loss)


def _search_rows(W: Tensor, R: Tensor, grid: Grid, order: Tensor, block_size: int) -> tuple[Grid, QuantizedRows]:
    rows = W.shape[0]
    factors = W.new_tensor(REFINE).repeat_interleave(rows)
    scaled = Grid(grid.scale.repeat(len(REFINE)) * factors, grid.zero_point.repeat(len(REFINE)), grid.bits)
    tried = quantize_with_factor(W, R, scaled, order, block_size)
    loss, best = tried.loss.view(len(REFINE), rows).min(0)
    chosen = best * rows + torch.arange(rows, device=W.device)
    return (
        Grid(scaled.scale[chosen], scaled.zero_point[chosen], grid.bits),
        QuantizedRows(tried.codes[chosen], loss),
    )


def quantize_with_golden_section(
    W: Tensor, R: Tensor, bits: int, scheme: Scheme, order: Tensor, block_size: int = 256
) -> tuple[Grid, QuantizedRows]:
    """Quantize with one clip factor for all rows, found by golden-section search on the true loss (arXiv 2510.04044).

    Args:
        W: Weights [rows, d]. Not modified.
        R: Upper factor of the damped, permuted Hessian [d, d]. Not modified.
        bits: Bits per code.
        scheme: Kind of grid.
        order: Column order of R, a permutation of range(d).
        block_size: Columns per lazy update; changes speed only.

    Returns:
        The chosen grid, the codes on it [rows, d] and their loss [rows], in squared output units.
    """
    low, high = row_range(W, scheme)
    tried: dict[float, tuple[float, Grid, QuantizedRows]] = {}

    def loss(factor: float) -> float:
        grid = range_grid(low * factor, high * factor, bits, scheme)
        rows = quantize_with_factor(W, R, grid, order, block_size)
        tried[factor] = (float(rows.loss.sum()), grid, rows)
        return tried[factor][0]

    ratio = (math.sqrt(5) - 1) / 2
    a, b = GOLDEN_LOW, 1.0
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    loss_c, loss_d = loss(c), loss(d)
    for _ in range(GOLDEN_STEPS):
        if loss_c < loss_d:
            b, d, loss_d = d, c, loss_c
            c = b - ratio * (b - a)
            loss_c = loss(c)
        else:
            a, c, loss_c = c, d, loss_d
            d = a + ratio * (b - a)
            loss_d = loss(d)
    _, grid, rows = min(tried.values(), key=lambda entry: entry[0])
    return grid, rows
