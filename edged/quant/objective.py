"""The layer loss that every method minimizes."""

from __future__ import annotations

from torch import Tensor

from edged.matmul import matmul_nt


def row_loss(delta: Tensor, H: Tensor) -> Tensor:
    """Compute the loss Δ H Δ^T / 2 of each row [rows], in squared output units.

    Args:
        delta: Weight errors Δ = W_hat - W [rows, d]. Not modified.
        H: Hessian 2/n X X^T [d, d], symmetric. Not modified.
    """
    return (matmul_nt(delta, H) * delta).sum(1) / 2
