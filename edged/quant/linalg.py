"""Damping and factorization of layer Hessians."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edged.errors import CalibrationError

DAMP_GROWTH = 10.0
MAX_RETRIES = 6


def damped_diagonal(diagonal: Tensor, damp_ratio: float, damp_absolute: float = 0.0) -> Tensor:
    """diag(H) + damp_ratio * mean(diag H) + damp_absolute, and 1 for dead inputs (H_jj == 0).

    Args:
        diagonal: diag(H) [d]. Not modified.
        damp_ratio: Relative damping, dimensionless.
        damp_absolute: Absolute damping, in squared input units.
    """
    damping = damp_ratio * diagonal.mean() + damp_absolute
    return torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal + damping)


def upper_factor(H: Tensor, order: Tensor) -> Tensor:
    """R upper triangular with P H P^T = R R^T: the Cholesky factor of the reversed matrix, reversed back.

    Args:
        H: Positive definite [d, d]. Not modified.
        order: Permutation of range(d); row i of P H P^T is row order[i] of H.

    Raises:
        CalibrationError: A pivot is not positive.
    """
    backwards = order.flip(0)
    L, info = torch.linalg.cholesky_ex(H[backwards[:, None], backwards])
    if info.item():
        raise CalibrationError(f"pivot {H.shape[0] - int(info.item())} of {H.shape[0]} of the Hessian is not positive")
    factor: Tensor = L.flip(0, 1)
    return factor


def inverse_diagonal(L: Tensor, block_size: int = 256) -> Tensor:
    """diag(H^-1) [d]: the squared column norms of L^-1, where H = L L^T.

    L^-1 is built block row by block row, so that nearly all work is in large products and the upper half is left out:

        (L^-1)[b, :b] = -L_bb^-1 L[b, :b] (L^-1)[:b, :b]

    Args:
        L: Lower triangular factor [d, d]. Not modified.
        block_size: Rows per block; changes speed only.
    """
    d = L.shape[0]
    inverse = torch.zeros_like(L)
    for start in range(0, d, block_size):
        done, block = slice(0, start), slice(start, min(start + block_size, d))
        eye = torch.eye(block.stop - start, dtype=L.dtype, device=L.device)
        corner = torch.linalg.solve_triangular(L[block, block], eye, upper=False)
        inverse[block, block] = corner
        inverse[block, done] = -corner @ (L[block, done] @ inverse[done, done])
    return inverse.square_().sum(0)


@dataclass(frozen=True)
class Damping:
    """What was added to a Hessian's diagonal to make it positive definite.

    Attributes:
        diagonal: The diagonal before [d].
        damp_ratio: Ratio in use after retries.
        retries: How many times the damping had to grow tenfold.
    """

    diagonal: Tensor
    damp_ratio: float
    retries: int

    @property
    def dead(self) -> Tensor:
        """Inputs that were zero in every calibration image, bool [d]."""
        return self.diagonal == 0

    def undo(self, H: Tensor) -> None:
        """Give H the diagonal that it had."""
        H.diagonal().copy_(self.diagonal)


def damp_in_place(H: Tensor, damp_ratio: float, damp_absolute: float = 0.0) -> tuple[Damping, Tensor]:
    """Damp H, growing the ratio tenfold until a Cholesky factorization exists.

    In place, because a second d x d matrix would be the largest thing in memory.

    Args:
        H: Symmetric [d, d], positive semi-definite up to rounding. Only its diagonal is changed.
        damp_ratio: First ratio to try.
        damp_absolute: Added besides, in squared input units.

    Returns:
        What was done, and L lower triangular with H = L L^T for the damped H.

    Raises:
        CalibrationError: H is not finite, or no ratio up to damp_ratio * 10**MAX_RETRIES suffices. H is as it was.
    """
    diagonal = H.diagonal().clone()
    if not bool(torch.isfinite(diagonal).all()):
        raise CalibrationError("the layer's inputs overflow: its Hessian is not finite; check the checkpoint")
    ratio = damp_ratio
    for retries in range(MAX_RETRIES + 1):
        H.diagonal().copy_(damped_diagonal(diagonal, ratio, damp_absolute))
        L, info = torch.linalg.cholesky_ex(H)
        if not info.item():
            return Damping(diagonal, ratio, retries), L
        ratio = max(ratio, 1e-6) * DAMP_GROWTH
    H.diagonal().copy_(diagonal)
    raise CalibrationError(
        f"the Hessian stays indefinite with damp_ratio {ratio / DAMP_GROWTH:g}; add calibration images"
    )
