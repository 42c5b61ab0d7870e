"""FastOBQ: all rows at once, one column order, one shared factor (arXiv 2509.05576).

The paper quantizes column j, adds the error's optimal compensation to the remaining columns (Eq. 12) and downdates
H^-1 (Eq. 13). With a fixed order this is the LDLQ recursion: factor P H P^T = R R^T with R upper triangular; then

    Δ H Δ^T = |Δ R|^2,   (Δ R)_j = R_jj (w_j - q_j + sum_{i<j} Δ_i R_ij / R_jj),   Δ = W - Q,

so the greedy choice is q_j = Q(w_j + sum_{i<j} Δ_i R_ij / R_jj), on the original weights, with the exact loss
sum_j (Δ R)_j^2 / 2. This gives the codes of Eq. 12/13 without any downdate:

        columns in order ->
        [ done: Δ known | block: one column after the other | not started ]
          Δ_done R[done, block] is one product   (the only d^2 work)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edged.matmul import matmul_nt
from edged.quant.grid import Grid, nearest_codes_
from edged.quant.linalg import factorize

_COLUMNS = 16  # quantized before their errors are applied to the rest of the block


@dataclass(frozen=True)
class QuantizedRows:
    """Codes of one layer or conv group.

    Attributes:
        codes: Codes, uint8 [rows, d], in stored column order.
        loss: Loss Δ H Δ^T / 2 of each row [rows] under the damped H, in squared output units.
    """

    codes: Tensor
    loss: Tensor


def quantize_columns(W: Tensor, H: Tensor, grid: Grid, order: Tensor, block_size: int = 256) -> QuantizedRows:
    """Quantize columns in `order`, compensating each error in the remaining columns.

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
    return quantize_with_factor(W, factorize(H, order).take_upper(), grid, order, block_size)


def quantize_with_factor(W: Tensor, R: Tensor, grid: Grid, order: Tensor, block_size: int = 256) -> QuantizedRows:
    """Quantize columns like `quantize_columns`, given the factor R of P H P^T = R R^T.

    Candidates that share an order can share R. All values are in steps of each row's grid, because the recursion does
    not depend on a row's scale: the unrounded code of a column is w / scale + zero_point plus the carried error, and
    quantizing the column only rounds it.

    Args:
        W: Weights [rows, d]. Not modified.
        R: Upper triangular [d, d], columns in `order`. Not modified.
        grid: One scale per row. With k times as many scales as rows, W is quantized once per set of scales.
        order: Permutation of range(d).
        block_size: Columns per lazy update; changes speed only.

    Returns:
        Codes [k * rows, d] and the exact loss [k * rows], in squared output units.
    """
    d, copies, candidates = W.shape[1], grid.scale.shape[0] // W.shape[0], grid.scale.shape[0]
    # Columns are visited one by one; as rows of the transpose they are contiguous.
    targets = W.t()[order]
    delta = W.new_empty(d, candidates)
    codes = torch.empty(d, candidates, dtype=torch.uint8, device=W.device)
    loss = W.new_zeros(candidates)
    for start in range(0, d, block_size):
        block = slice(start, min(start + block_size, d))
        wanted = targets[block].repeat(1, copies).div_(grid.scale).add_(grid.zero_point)
        carried = matmul_nt(R[:start, block].t(), delta[:start].t()) if start else torch.zeros_like(wanted)
        _quantize_block(wanted, R[block, block], carried, grid.max_code, delta[block])
        codes[order[block]] = wanted.sub_(delta[block]).round_().to(torch.uint8)
        loss += carried.square_().sum(0)
    return QuantizedRows(codes.t().contiguous(), loss * grid.scale.square() / 2)


def _quantize_block(wanted: Tensor, R: Tensor, carried: Tensor, max_code: int, delta: Tensor) -> None:
    """Quantize one block of columns.

    A few columns are quantized one after the other; then one product applies their errors to the rest of the block.

    Args:
        wanted: Weights of the block in steps of the grid [block, rows].
        R: Diagonal block of the factor [block, block].
        carried: Sum over earlier blocks of Δ_i R_ij [block, rows]. Becomes (Δ R)_j, whose square is column j's loss.
        max_code: Largest code.
        delta: Output Δ = W - Q [block, rows].
    """
    block = R.shape[0]
    for start in range(0, block, _COLUMNS):
        stop = min(start + _COLUMNS, block)
        part = slice(start, stop)
        _quantize_one_by_one(wanted[part], R[part, part], carried[part], max_code, delta[part])
        carried[stop:].addmm_(R[part, stop:].t(), delta[part])


def _quantize_one_by_one(wanted: Tensor, R: Tensor, carried: Tensor, max_code: int, delta: Tensor) -> None:
    """Quantize columns one after the other; the arguments are those of `_quantize_block`."""
    code = torch.empty_like(wanted[0])
    pivots = R.diagonal().tolist()
    for j, (target, pivot, error) in enumerate(zip(wanted.unbind(), pivots, delta.unbind(), strict=True)):
        torch.add(target, carried[j], alpha=1 / pivot, out=code)
        torch.sub(target, nearest_codes_(code, max_code), out=error)
        carried[j:].addr_(R[j, j:], error)
