"""Coordinate descent: choose each code again after the greedy pass, given all other codes."""

from __future__ import annotations

from torch import Tensor

from edged.quant.accept import better_rows
from edged.quant.fastobq import QuantizedRows
from edged.quant.grid import Grid
from edged.quant.objective import row_loss


def descend(W: Tensor, H: Tensor, grid: Grid, start: QuantizedRows, passes: int) -> QuantizedRows:
    """Visit all columns `passes` times, setting q_j <- Q(q_j - [(Q - W) H]_j / H_jj).

    With all other codes fixed this is the best code for column j, so a step can raise a row's loss only by rounding
    error. A row whose final loss is higher than its initial loss keeps its initial codes.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        grid: Fixed scales, one per row.
        start: Codes to improve. Not modified.
        passes: Number of times that each column is visited.

    Returns:
        Codes [rows, d] and their losses [rows] under H; no row's loss is higher than at the start.
    """
    # Transposed, so that each column is contiguous.
    delta = (grid.decode(start.codes) - W).t().contiguous()
    codes = start.codes.t().contiguous()
    for _ in range(passes):
        gradient = H @ delta
        for j, curvature in enumerate(H.diagonal().tolist()):
            q = delta[j] + W[:, j]
            code = (q - gradient[j] / curvature).div_(grid.scale).round_().add_(grid.zero_point)
            code.clamp_(0, grid.max_code)
            step = (code - grid.zero_point).mul_(grid.scale).sub_(q)
            gradient.addr_(H[j], step)
            delta[j] += step
            codes[j] = code
    # Both losses are computed by the same formula, so that a difference in summation order cannot decide.
    before = QuantizedRows(start.codes, row_loss(grid.decode(start.codes) - W, H))
    after = codes.t().contiguous()
    return better_rows(before, QuantizedRows(after, row_loss(grid.decode(after) - W, H)))
