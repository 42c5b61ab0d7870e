"""Damping and factorization of layer Hessians."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edged.errors import CalibrationError
from edged.matmul import matmul_nt

DAMP_GROWTH = 10.0
MAX_RETRIES = 6
FACTOR_ROWS = 512  # per product of a factorization; limits the copies of its operands


def damped_diagonal(diagonal: Tensor, damp_ratio: float, damp_absolute: float = 0.0) -> Tensor:
    """Compute diag(H) + damp_ratio * mean(diag H) + damp_absolute, and 1 for dead inputs (H_jj == 0).

    Args:
        diagonal: Diagonal of H [d]. Not modified.
        damp_ratio: Relative damping, dimensionless.
        damp_absolute: Absolute damping, in squared input units.
    """
    damping = damp_ratio * diagonal.mean() + damp_absolute
    return torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal + damping)


class Factor:
    """A factored Hessian: H[backwards][:, backwards] = L L^T, L lower triangular.

    For large layers each d x d matrix is a considerable part of all memory in use. Results therefore overwrite L:
    `take_upper` and `take_inverse_diagonal` consume the factor, which cannot be used afterwards.

    Args:
        L: Lower triangular factor [d, d]. The new object takes ownership of it.
        backwards: Column order from its last entry to its first, a permutation of range(d).
    """

    def __init__(self, L: Tensor, backwards: Tensor) -> None:
        self._L, self._backwards = L, backwards

    def solve(self, B: Tensor) -> Tensor:
        """Return B H^-1 [rows, d] for B [rows, d]. B is not modified."""
        solution = torch.empty_like(B)
        half = torch.linalg.solve_triangular(self._L, B[:, self._backwards].t(), upper=False)
        solution[:, self._backwards] = torch.linalg.solve_triangular(self._L.t(), half, upper=True).t()
        return solution

    def take_upper(self) -> Tensor:
        """Consume the factor and return R upper triangular [d, d] with P H P^T = R R^T, columns in order.

        R is L with its rows and columns reversed.
        """
        R, self._L = self._L, self._L.new_empty(0)
        _reverse_in_place(R.view(-1))
        return R

    def take_inverse_diagonal(self, block_size: int = 256) -> Tensor:
        """Consume the factor and return diag(H^-1) [d], the squared column norms of L^-1.

        L^-1 overwrites L one block of rows after the other. Nearly all work is in large products, and the upper half
        is skipped:

            (L^-1)[b, :b] = -L_bb^-1 S[b, :b],   S[i, :] = sum_{b<i} L[i, b] (L^-1)[b, :]

        Args:
            block_size: Rows per block; changes speed only.
        """
        rows, self._L = self._L, self._L.new_empty(0)
        d = rows.shape[0]
        for start in range(0, d, block_size):
            stop = min(start + block_size, d)
            done, block = slice(0, start), slice(start, stop)
            eye = torch.eye(stop - start, dtype=rows.dtype, device=rows.device)
            corner = torch.linalg.solve_triangular(rows[block, block], eye, upper=False)
            rows[block, done] = -corner @ rows[block, done]
            rows[block, block] = corner
            inverse = rows[block, :stop].t().contiguous()
            for top in range(stop, d, FACTOR_ROWS):
                below = slice(top, min(top + FACTOR_ROWS, d))
                factor = rows[below, block].clone()  # last read: S overwrites it
                rows[below, block] = 0
                rows[below, :stop] += matmul_nt(factor, inverse)
        diagonal = torch.empty_like(rows[0])
        diagonal[self._backwards] = rows.square_().sum(0)
        return diagonal


def _reverse_in_place(flat: Tensor, chunk: int = 1 << 20) -> None:
    n = flat.shape[0]
    for start in range(0, n // 2, chunk):
        stop = min(start + chunk, n // 2)
        front, back = flat[start:stop], flat[n - stop : n - start]
        swapped = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(swapped)


def cholesky_in_place(A: Tensor, block_size: int = 256) -> int:
    """Overwrite A with its lower triangular factor L, A = L L^T, one block of columns after the other.

    torch calls LAPACK's routine on a copy, and for float32 that is slower than these products.

    Args:
        A: Symmetric matrix [d, d], contiguous. Overwritten.
        block_size: Columns per block; changes speed only.

    Returns:
        0, or the number of the first pivot that is not positive, counted from 1; the contents of A are then undefined.
    """
    d = A.shape[0]
    for start in range(0, d, block_size):
        done, block, below = slice(0, start), slice(start, min(start + block_size, d)), slice(start + block_size, d)
        for top in range(start, d if start else 0, FACTOR_ROWS):
            rows = slice(top, min(top + FACTOR_ROWS, d))
            A[rows, block] -= matmul_nt(A[rows, done], A[block, done])
        L, info = torch.linalg.cholesky_ex(A[block, block])
        if info:
            return start + int(info)
        A[block, block] = L
        A[below, block] = torch.linalg.solve_triangular(L, A[below, block].t(), upper=False).t()
        A[block, below] = 0
    return 0


def factorize(H: Tensor, order: Tensor) -> Factor:
    """Factorize H with its columns in `order`.

    Args:
        H: Positive definite [d, d]. Not modified.
        order: Permutation of range(d).

    Raises:
        CalibrationError: A pivot is not positive.
    """
    factor, info = _try_to_factorize(H, order)
    if info:
        raise CalibrationError(f"pivot {H.shape[0] - info} of {H.shape[0]} of the Hessian is not positive")
    return factor


def _try_to_factorize(H: Tensor, order: Tensor) -> tuple[Factor, int]:
    """Factorize H [d, d] with its columns in `order`.

    Returns:
        The factor, and 0 or the number of the first pivot that is not positive, counted from the end of the order.
    """
    backwards = order.flip(0)
    L = H[backwards[:, None], backwards]
    info = cholesky_in_place(L)
    return Factor(L, backwards), info


@dataclass(frozen=True)
class Damping:
    """A record of the damping that made a Hessian positive definite.

    Attributes:
        diagonal: Undamped diagonal of the Hessian [d].
        damp_ratio: Damping ratio in use after retries, dimensionless.
        retries: Number of tenfold increases of the damping.
    """

    diagonal: Tensor
    damp_ratio: float
    retries: int

    @property
    def dead(self) -> Tensor:
        """Inputs that were zero in every calibration image, bool [d]."""
        return self.diagonal == 0

    def undo(self, H: Tensor) -> None:
        """Restore the undamped diagonal of H."""
        H.diagonal().copy_(self.diagonal)


def damp_in_place(H: Tensor, order: Tensor, damp_ratio: float, damp_absolute: float = 0.0) -> tuple[Damping, Factor]:
    """Damp H in place, increasing the ratio tenfold until a Cholesky factorization exists.

    H is damped in place because another d x d matrix would be the largest allocation of the process.

    Args:
        H: Symmetric [d, d], positive semi-definite up to rounding. Only its diagonal is modified.
        order: Column order of the factorization, a permutation of range(d).
        damp_ratio: First ratio to try, dimensionless.
        damp_absolute: Absolute damping that is added, in squared input units.

    Returns:
        A record of the damping, and the factor of the damped H.

    Raises:
        CalibrationError: H is not finite, or no ratio up to damp_ratio * 10**MAX_RETRIES suffices. H is restored.
    """
    diagonal = H.diagonal().clone()
    if not bool(torch.isfinite(diagonal).all()):
        raise CalibrationError("the layer's Hessian is not finite because its inputs overflow; check the checkpoint")
    ratio = damp_ratio
    for retries in range(MAX_RETRIES + 1):
        H.diagonal().copy_(damped_diagonal(diagonal, ratio, damp_absolute))
        factor, info = _try_to_factorize(H, order)
        if not info:
            return Damping(diagonal, ratio, retries), factor
        ratio = max(ratio, 1e-6) * DAMP_GROWTH
    H.diagonal().copy_(diagonal)
    raise CalibrationError(
        f"the Hessian is not positive definite with damp_ratio {ratio / DAMP_GROWTH:g}; add calibration images"
    )
