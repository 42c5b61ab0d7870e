"""The layer loss: what every method is judged by."""

from __future__ import annotations

from torch import Tensor

from edged.matmul import matmul_nt


def row_loss(delta: Tensor, H: Tensor) -> Tensor:
    """Δ H Δ^T / 2 of each row [rows], in squared output units.

    Args:
        delta: W_hat - W [rows, d].
        H: Hessian 2/n X X^T [d, d], symmetric.
    """
    return (matmul_nt(delta, H) * delta).sum(1) / 2
