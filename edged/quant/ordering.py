"""In which order columns are quantized: each rule is a score per column, visited from the highest to the lowest."""

from __future__ import annotations

import torch
from torch import Tensor

from edged.quant.grid import Grid
from edged.quant.linalg import Damped, inverse_diagonal
from edged.spec import Order


def column_order(W: Tensor, damped: Damped, grid: Grid, order: Order) -> Tensor:
    """The permutation of range(d) in which FastOBQ visits the columns.

    Args:
        W: Weights [rows, d]. Not modified.
        damped: Damped Hessian [d, d] with its factor. Not modified.
        grid: The rows' grid.
        order: The rule.

    Returns:
        int64 [d]; equal scores keep their stored order, so the result is reproducible.
    """
    if order is Order.NONE:
        return torch.arange(W.shape[1], device=W.device)
    return torch.sort(column_score(W, damped, grid, order), descending=True, stable=True).indices


def column_score(W: Tensor, damped: Damped, grid: Grid, order: Order) -> Tensor:
    """Score of each column [d] under a rule other than Order.NONE.

    Sensitivity is S_j = sum_i (quant(w_ij) - w_ij)^2 / (2 [H^-1]_jj) (arXiv 2509.05576, Eq. 11).
    """
    if order is Order.HESSIAN:
        return damped.H.diagonal()
    if order is Order.WEIGHT:
        return W.abs().sum(0)
    error = grid.nearest(W) - W
    if order is Order.ERROR:
        return error.abs().sum(0)
    return error.square().sum(0) / (2 * inverse_diagonal(damped.L))
