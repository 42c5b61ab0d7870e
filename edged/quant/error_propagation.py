"""Target weights of a layer whose inputs come from an already quantized network."""

from __future__ import annotations

import torch
from torch import Tensor

from edged.matmul import matmul_nt
from edged.quant.linalg import Factor

_ROWS = 256  # solved at a time: a solution needs several temporary matrices of its own shape


def compensated_weights(W: Tensor, H: Tensor, factor: Factor, damping: Tensor, cross: Tensor, share: float) -> Tensor:
    """Compute the weights that best reproduce the full-precision outputs from the quantized network's inputs.

    With full-precision outputs Y = W X and inputs X_hat, the least-squares solution regularized towards W is

        W* = (2/n Y X_hat^T + W D) (H + D)^-1,   H = 2/n X_hat X_hat^T,   D the damping

    (error propagation as in QEP, arXiv 2504.09629, and Qronos, arXiv 2505.11695). In directions that the calibration
    images barely cover, D dominates and W is kept.

    Args:
        W: Full-precision weights [rows, d]. Not modified.
        H: Damped Hessian H + D [d, d] of X_hat. Not modified.
        factor: Factor of the damped H.
        damping: Diagonal of D [d].
        cross: Cross moment 2/n Y X_hat^T [rows, d]. Not modified.
        share: Interpolation between W (0) and W* (1), dimensionless.

    Returns:
        W + share * (W* - W), [rows, d].
    """
    # (W* - W) (H + D) = cross - W H: solving for the difference keeps W exact where there is nothing to correct.
    moved = torch.empty_like(W)
    for start in range(0, W.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        residual = torch.addcmul(cross[rows], W[rows], damping).sub_(matmul_nt(W[rows], H))
        torch.add(W[rows], factor.solve(residual), alpha=share, out=moved[rows])
    return moved
