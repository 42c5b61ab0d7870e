"""OBQ, which FastOBQ simplifies: each row has its own order and its own inverse Hessian (arXiv 2208.11580)."""

from __future__ import annotations

import torch
from torch import Tensor

from edged.quant.fastobq import QuantizedRows
from edged.quant.grid import Grid
from edged.quant.objective import row_loss

ROWS_AT_ONCE = 16


def quantize_rows_greedily(W: Tensor, H: Tensor, grid: Grid, rows_at_once: int = ROWS_AT_ONCE) -> QuantizedRows:
    """Quantize each row in its own greedy order.

    The next weight of a row is the one with the lowest (quant(w) - w)^2 / [H^-1]_jj. A weight whose squared error
    exceeds scale^2 / 4 takes precedence: compensation has pushed it off the grid, and waiting increases its error.
    Every row downdates its own copy of H^-1, which takes rows * d^3 operations; FastOBQ avoids these.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        grid: Fixed scales, one per row.
        rows_at_once: Rows processed together; each needs memory for d^2 values.

    Returns:
        Codes [rows, d] and their loss [rows] under the damped H, in squared output units.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    codes = torch.cat(
        [
            _quantize(W[part], inverse, Grid(grid.scale[part], grid.zero_point[part], grid.bits))
            for part in (slice(start, start + rows_at_once) for start in range(0, len(W), rows_at_once))
        ]
    )
    return QuantizedRows(codes, row_loss(grid.decode(codes) - W, H))


def _quantize(W: Tensor, inverse: Tensor, grid: Grid) -> Tensor:
    """Quantize a few rows W [rows, d], given H^-1 [d, d]; return their codes, uint8 [rows, d]."""
    rows, d = W.shape
    W, inverses = W.clone(), inverse.repeat(rows, 1, 1)
    codes = torch.zeros(rows, d, dtype=torch.uint8, device=W.device)
    left = torch.ones(rows, d, dtype=torch.bool, device=W.device)
    all_rows = torch.arange(rows, device=W.device)
    outlier = grid.scale.square()[:, None] / 4 * (1 + 1e-6)
    for _ in range(d):
        error = (grid.nearest(W) - W).square()
        pivots = inverses.diagonal(dim1=1, dim2=2)
        cost = torch.where(error > outlier, -error, error / pivots).masked_fill(~left, torch.inf)
        chosen = cost.argmin(1)
        w = W[all_rows, chosen]
        code = torch.round(w / grid.scale).add_(grid.zero_point).clamp_(0, grid.max_code)
        codes[all_rows, chosen] = code.to(torch.uint8)
        left[all_rows, chosen] = False
        column = inverses[all_rows, chosen]  # [rows, d]
        pivot = column[all_rows, chosen]
        W -= ((w - (code - grid.zero_point) * grid.scale) / pivot)[:, None] * column
        inverses -= column[:, :, None] * (column / pivot[:, None])[:, None, :]
        # A unit pivot keeps the division by quantized columns' pivots finite.
        inverses[all_rows, chosen, chosen] = 1.0
    return codes
