"""Damping and factorization of layer Hessians."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edged.errors import CalibrationError

DAMP_GROWTH = 10.0
MAX_RETRIES = 6


def damped(H: Tensor, damp_ratio: float) -> Tensor:
    """H + damp_ratio * mean(diag H) * I, with dead inputs (H_jj == 0) given H_jj = 1.

    Args:
        H: Symmetric positive semi-definite [d, d]. Not modified.
        damp_ratio: Relative damping, dimensionless.
    """
    diagonal = H.diagonal()
    dead = diagonal == 0
    damping = damp_ratio * diagonal.mean()
    out = H.clone()
    out.diagonal().copy_(torch.where(dead, torch.ones_like(diagonal), diagonal + damping))
    return out


def upper_factor(H: Tensor) -> Tensor:
    """R upper triangular with H = R R^T: the Cholesky factor of the reversed matrix, reversed back.

    Args:
        H: Positive definite [d, d]. Not modified.

    Raises:
        CalibrationError: A pivot is not positive.
    """
    L, info = torch.linalg.cholesky_ex(H.flip(0, 1))
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
class Damped:
    """A Hessian made positive definite, and what that took.

    Attributes:
        H: Damped Hessian [d, d].
        L: Its Cholesky factor, lower triangular [d, d].
        damp_ratio: Ratio in use after retries.
        retries: How many times the damping had to grow tenfold.
        dead: Inputs that were zero in every calibration image, bool [d].
    """

    H: Tensor
    L: Tensor
    damp_ratio: float
    retries: int
    dead: Tensor


def damp_until_definite(H: Tensor, damp_ratio: float) -> Damped:
    """Damp H, growing the ratio tenfold until a Cholesky factorization exists.

    Args:
        H: Symmetric [d, d], positive semi-definite up to rounding. Not modified.
        damp_ratio: First ratio to try.

    Raises:
        CalibrationError: H is not finite, or no ratio up to damp_ratio * 10**MAX_RETRIES suffices.
    """
    if not bool(torch.isfinite(H.diagonal()).all()):
        raise CalibrationError("the layer's inputs overflow: its Hessian is not finite; check the checkpoint")
    ratio = damp_ratio
    for retries in range(MAX_RETRIES + 1):
        candidate = damped(H, ratio)
        L, info = torch.linalg.cholesky_ex(candidate)
        if not info.item():
            return Damped(candidate, L, ratio, retries, H.diagonal() == 0)
        ratio = max(ratio, 1e-6) * DAMP_GROWTH
    raise CalibrationError(
        f"the Hessian stays indefinite with damp_ratio {ratio / DAMP_GROWTH:g}; add calibration images"
    )
