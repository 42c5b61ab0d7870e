"""REQuant (arXiv 2510.04044): round to nearest in the range of least error, found by golden-section search.

A range is a share alpha in (0, 1] of the full one. Wide ranges round coarsely, narrow ones clip, so the error as a
function of alpha is locally convex.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edged.quant.grid import Grid, range_grid, row_range
from edged.quant.objective import row_loss
from edged.quant.power_grid import UNIFORM, joined, power_range_grid
from edged.spec import Levels, QuantSpec, Search

LEAST_SHARE = 0.02
# Locally convex is not convex: these points bracket the lowest of several minima before golden sections narrow it.
BRACKET_POINTS = 9
TOLERANCE = 1e-3  # of the share
EXPONENTS = (UNIFORM, 18, 20, 22, 24, 28, 32, 40)  # of non-uniform levels, in sixteenths
_CHEAPER = {Search.LOSS: Search.WEIGHTED}  # the true loss takes a product of matrices for each share
_GOLDEN = (math.sqrt(5) - 1) / 2


def estimated_grid(W: Tensor, H: Tensor, spec: QuantSpec) -> Grid:
    """Return the grid of the ranges that round W with the least error.

    The error of a range, with D = nearest(W) - W:

        Search.GOLDEN      sum_ij D_ij^2           one share for all rows, as in the paper
        Search.MSE         sum_j D_ij^2            a share for each row
        Search.WEIGHTED    sum_j D_ij^2 H_jj       a share for each row
        Search.LOSS        (D H D^T)_ii / 2        a share for each row
        Search.MINMAX      the full range, without a search

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        spec: Bits, scheme, levels, search, and the rows that are searched together, which bound memory.
    """
    find = _power_grid if spec.levels is Levels.POWER else _uniform_grid
    if spec.search is Search.GOLDEN:
        return find(W, H, spec)
    return joined([find(part, H, spec) for part in torch.split(W, spec.rows_at_once)])


def _uniform_grid(W: Tensor, H: Tensor, spec: QuantSpec) -> Grid:
    low, high = row_range(W, spec.scheme)

    def grid_of(share: Tensor) -> Grid:
        return range_grid(low * share, high * share, spec.width, spec.scheme)

    return grid_of(_best_share(W, H, grid_of, spec.search))


def _power_grid(W: Tensor, H: Tensor, spec: QuantSpec) -> Grid:
    """Choose each row's exponent by an error that is cheap, with the best range of each; then search its range."""
    low, high = row_range(W, spec.scheme)
    cheap = _CHEAPER.get(spec.search, spec.search)

    def grids_of(exponent: Tensor) -> Callable[[Tensor], Grid]:
        return lambda share: power_range_grid(low * share, high * share, spec.width, spec.scheme, exponent)

    chosen = torch.full((len(W),), UNIFORM, dtype=torch.uint8, device=W.device)
    least = torch.full_like(low, torch.inf)
    for sixteenths in EXPONENTS:
        exponent = torch.full_like(chosen, sixteenths)
        grid = grids_of(exponent)(_best_share(W, H, grids_of(exponent), cheap))
        error = _errors(grid.nearest(W) - W, H, cheap)
        chosen, least = torch.where(error < least, exponent, chosen), torch.minimum(error, least)
    return grids_of(chosen)(_best_share(W, H, grids_of(chosen), spec.search))


def _best_share(W: Tensor, H: Tensor, grid_of: Callable[[Tensor], Grid], search: Search) -> Tensor:
    """Return the share [rows] whose grid rounds W with the least error."""
    if search is Search.MINMAX:
        return W.new_ones(len(W))
    return golden_section(lambda share: _errors(grid_of(share).nearest(W) - W, H, search), len(W), W)


def _errors(D: Tensor, H: Tensor, search: Search) -> Tensor:
    """Return the error of each row [rows]; that of all rows together, for each of them, where they share a range."""
    if search is Search.LOSS:
        return row_loss(D, H)
    if search is Search.WEIGHTED:
        return D.square() @ H.diagonal()
    errors = D.square().sum(1)
    return errors.sum().expand(len(D)) if search is Search.GOLDEN else errors


def golden_section(error: Callable[[Tensor], Tensor], rows: int, like: Tensor) -> Tensor:
    """Search in each row for the share in [LEAST_SHARE, 1] with the least error.

    Args:
        error: Maps shares [rows] to errors [rows].
        rows: Number of rows, which are searched independently of each other.
        like: Tensor that gives dtype and device of the shares.

    Returns:
        The best of all shares that were tried [rows].
    """
    step = (1 - LEAST_SHARE) / (BRACKET_POINTS - 1)
    best = like.new_ones(rows)
    least = error(best)

    def tried(share: Tensor) -> Tensor:
        nonlocal best, least
        found = error(share)
        best, least = torch.where(found < least, share, best), torch.minimum(found, least)
        return found

    for index in range(1, BRACKET_POINTS):
        tried(torch.full_like(best, 1 - index * step))
    left, right = (best - step).clamp_min(LEAST_SHARE), (best + step).clamp_max(1)
    inner = [right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)]
    errors = [tried(share) for share in inner]
    for _ in range(math.ceil(math.log(TOLERANCE / (2 * step), _GOLDEN))):
        lower = errors[0] <= errors[1]  # the minimum is left of the right inner share
        left, right = torch.where(lower, left, inner[0]), torch.where(lower, inner[1], right)
        # One of the two inner shares of the narrower interval has been tried.
        kept, kept_error = torch.where(lower, inner[0], inner[1]), torch.where(lower, errors[0], errors[1])
        fresh = torch.where(lower, right - _GOLDEN * (right - left), left + _GOLDEN * (right - left))
        fresh_error = tried(fresh)
        inner = [torch.where(lower, fresh, kept), torch.where(lower, kept, fresh)]
        errors = [torch.where(lower, fresh_error, kept_error), torch.where(lower, kept_error, fresh_error)]
    return best
