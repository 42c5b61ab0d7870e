"""Column orders: each rule scores the columns, which are visited from the highest to the lowest score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edged.quant.grid import Grid
from edged.quant.linalg import Factor
from edged.spec import Order

PANEL = 128


# These need neither weights nor a factor, so the Hessian can be factorized in this order right away.
KNOWN_BEFOREHAND = (Order.NONE, Order.HESSIAN)


def order_beforehand(H: Tensor, order: Order, descending: bool = True) -> Tensor:
    """Return the column order of a rule in KNOWN_BEFOREHAND, and the stored order for any other rule.

    Args:
        H: Undamped or damped Hessian [d, d]. Not modified.
        order: Ordering rule.
        descending: Whether the highest score comes first.

    Returns:
        A permutation of range(d), int64 [d].
    """
    if order is Order.HESSIAN:
        return _visit(H.diagonal(), descending)
    return torch.arange(H.shape[0], device=H.device)


def column_order(W: Tensor, H: Tensor, factor: Factor, grid: Grid, order: Order, descending: bool = True) -> Tensor:
    """Return the permutation of range(d) in which FastOBQ visits the columns.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        factor: Factor of H, in any order. Consumed by Order.SENSITIVITY.
        grid: Fixed scales, one per row.
        order: Ordering rule.
        descending: Whether the highest score comes first.

    Returns:
        The permutation, int64 [d]; columns of equal score keep their stored order, so the result is reproducible.
    """
    if order in KNOWN_BEFOREHAND:
        return order_beforehand(H, order, descending)
    return _visit(column_score(W, H, factor, grid, order), descending)


def _visit(score: Tensor, descending: bool) -> Tensor:
    return torch.sort(score, descending=descending, stable=True).indices


def column_score(W: Tensor, H: Tensor, factor: Factor, grid: Grid, order: Order) -> Tensor:
    """Compute the score of each column [d] under any rule except Order.NONE and Order.BEST.

    Sensitivity is S_j = sum_i (quant(w_ij) - w_ij)^2 / (2 [H^-1]_jj) (arXiv 2509.05576, Eq. 11).

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        factor: Factor of H, in any order. Consumed by Order.SENSITIVITY.
        grid: Fixed scales, one per row.
        order: Ordering rule.
    """
    if order is Order.MIN_PIVOT:
        return _min_pivot_score(H)
    if order is Order.HESSIAN:
        return H.diagonal()
    if order is Order.WEIGHT:
        return W.abs().sum(0)
    error = grid.nearest(W) - W
    if order is Order.ERROR:
        return error.abs().sum(0)
    return error.square().sum(0) / (2 * factor.take_inverse_diagonal())


def _min_pivot_score(H: Tensor) -> Tensor:
    """Compute each column's position [d] in the elimination of H that always takes the smallest pivot next.

    The column that is eliminated first is visited last. The loss is sum_j R_jj^2 e_j^2 with rounding errors e_j, and
    R_jj^2 are the pivots of this elimination. Outer products are gathered in panels, so that nearly all work is in
    products of PANEL x d matrices.
    """
    d = H.shape[0]
    H, left = H.clone(), H.diagonal().clone()
    place = torch.empty(d, device=H.device)
    for start in range(0, d, PANEL):
        panel = H.new_zeros(min(PANEL, d - start), d)
        for k in range(panel.shape[0]):
            least = int(left.argmin())
            row = H[least] - panel[:k, least] @ panel[:k]
            panel[k] = row / math.sqrt(max(float(left[least]), torch.finfo(H.dtype).tiny))
            left -= panel[k].square()
            left[least] = torch.inf
            place[least] = start + k
        H.addmm_(panel.t(), panel, alpha=-1)
    return place
