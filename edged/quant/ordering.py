"""In which order columns are quantized: each rule is a score per column, visited from the highest to the lowest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edged.quant.grid import Grid
from edged.quant.linalg import Factor
from edged.spec import Order

PANEL = 128


# These need neither weights nor a factor: the Hessian can be factored in this order right away.
KNOWN_BEFOREHAND = (Order.NONE, Order.HESSIAN)


def order_beforehand(H: Tensor, order: Order, descending: bool = True) -> Tensor:
    """`column_order` of a rule in KNOWN_BEFOREHAND, from the undamped or damped H [d, d]; as stored for any other."""
    if order is Order.HESSIAN:
        return _visit(H.diagonal(), descending)
    return torch.arange(H.shape[0], device=H.device)


def column_order(W: Tensor, H: Tensor, factor: Factor, grid: Grid, order: Order, descending: bool = True) -> Tensor:
    """The permutation of range(d) in which FastOBQ visits the columns.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        factor: Of H, in any order. Used up by Order.SENSITIVITY.
        grid: The rows' grid.
        order: The rule.
        descending: Whether the highest score comes first.

    Returns:
        int64 [d]; equal scores keep their stored order, so the result is reproducible.
    """
    if order in KNOWN_BEFOREHAND:
        return order_beforehand(H, order, descending)
    return _visit(column_score(W, H, factor, grid, order), descending)


def _visit(score: Tensor, descending: bool) -> Tensor:
    return torch.sort(score, descending=descending, stable=True).indices


def column_score(W: Tensor, H: Tensor, factor: Factor, grid: Grid, order: Order) -> Tensor:
    """Score of each column [d] under a rule other than Order.NONE and Order.BEST.

    Sensitivity is S_j = sum_i (quant(w_ij) - w_ij)^2 / (2 [H^-1]_jj) (arXiv 2509.05576, Eq. 11).
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
    """Place of each column [d] when, from the last one visited to the first, the least pivot is always taken next.

    The loss is sum_j R_jj^2 e_j^2 with rounding errors e_j, and R_jj^2 are the pivots of this elimination. Outer
    products are gathered in panels, so that nearly all work is in products of PANEL x d matrices.
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
