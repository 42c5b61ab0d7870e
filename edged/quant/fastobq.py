"""FastOBQ: all rows at once, one column order, one shared factor (arXiv 2509.05576).

The paper quantizes column j, adds the error's best compensation to the columns left (Eq. 12) and downdates
H^-1 (Eq. 13). With a fixed order that is the LDLQ recursion: factor P H P^T = R R^T with R upper triangular; then

    Δ H Δ^T = |Δ R|^2,   (Δ R)_j = R_jj (w_j - q_j + sum_{i<j} Δ_i R_ij / R_jj),   Δ = W - Q,

so the greedy choice is q_j = Q(w_j + sum_{i<j} Δ_i R_ij / R_jj), on the original weights, with the exact loss
sum_j (Δ R)_j^2 / 2. Same codes as Eq. 12/13, without a single downdate:

        columns in order ->
        [ done: Δ known | block: one column after the other | untouched ]
          Δ_done R[done, block] is one product   (the only d^2 work)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edged.quant.grid import Grid
from edged.quant.linalg import upper_factor


@dataclass(frozen=True)
class QuantizedRows:
    """Codes of one layer or conv group.

    Attributes:
        codes: uint8 [rows, d], in stored column order.
        loss: Δ H Δ^T / 2 per row [rows], in squared output units, with the damped H.
    """

    codes: Tensor
    loss: Tensor


def quantize_columns(W: Tensor, H: Tensor, grid: Grid, order: Tensor, block_size: int = 128) -> QuantizedRows:
    """Quantize columns in `order`, pushing each error onto those left.

    Minimizes tr((W_hat - W) H (W_hat - W)^T) / 2 greedily (arXiv 2509.05576, Eq. 10-13).

    Args:
        W: Weights [rows, d], a row per output channel. Not modified.
        H: Damped Hessian [d, d] of one conv group. Not modified.
        grid: Fixed scales, one per row.
        order: Permutation of range(d); the first entry is quantized first.
        block_size: Columns per lazy update; changes speed only.

    Returns:
        Codes [rows, d] and the exact loss [rows], in squared output units.

    Raises:
        CalibrationError: H is not positive definite.
    """
    R = upper_factor(H, order)
    return quantize_with_factor(W, R, grid, order, block_size)


def quantize_with_factor(W: Tensor, R: Tensor, grid: Grid, order: Tensor, block_size: int = 128) -> QuantizedRows:
    """`quantize_columns` with P H P^T = R R^T already factored: candidates that share an order share R.

    Args:
        W: Weights [rows, d]. Not modified.
        R: Upper triangular [d, d], columns in `order`.
        grid: One scale per row.
        order: Permutation of range(d).
        block_size: Columns per lazy update.
    """
    rows, d = W.shape
    # Columns are visited one by one: as rows of the transpose they are contiguous.
    targets = W.t()[order]
    delta = torch.empty_like(targets)
    codes = torch.empty(d, rows, dtype=torch.uint8, device=W.device)
    loss = torch.zeros(rows, dtype=W.dtype, device=W.device)
    for start in range(0, d, block_size):
        block = slice(start, min(start + block_size, d))
        carried = R[:start, block].t() @ delta[:start]
        loss += _quantize_block(targets[block], R[block, block], carried, grid, codes[block], delta[block])
    unpermuted = torch.empty_like(codes)
    unpermuted[order] = codes
    return QuantizedRows(unpermuted.t().contiguous(), loss / 2)


def _quantize_block(targets: Tensor, R: Tensor, carried: Tensor, grid: Grid, codes: Tensor, delta: Tensor) -> Tensor:
    """Quantize one block of columns, one after the other.

    Args:
        targets: Weights of the block [block, rows].
        R: Diagonal block of the factor [block, block].
        carried: sum over earlier blocks of Δ_i R_ij [block, rows]. Overwritten.
        grid: One scale per row.
        codes: Receives the codes [block, rows].
        delta: Receives Δ = W - Q [block, rows].

    Returns:
        sum over the block's columns of (Δ R)_j^2 [rows].
    """
    pivots = R.diagonal().tolist()
    for j, pivot in enumerate(pivots):
        wanted = torch.add(targets[j], carried[j], alpha=1 / pivot)
        code = wanted.div_(grid.scale).round_().add_(grid.zero_point).clamp_(0, grid.max_code)
        codes[j] = code
        torch.sub(targets[j], code.sub_(grid.zero_point).mul_(grid.scale), out=delta[j])
        # carried[j] becomes (Δ R)_j, whose square is the loss of column j.
        carried[j:].addr_(R[j, j:], delta[j])
    return carried.square().sum(0)
