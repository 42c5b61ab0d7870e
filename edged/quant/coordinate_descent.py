"""Coordinate descent: after the greedy pass, each code is chosen once more in the light of all others."""

from __future__ import annotations

from torch import Tensor

from edged.quant.accept import better_rows
from edged.quant.fastobq import QuantizedRows
from edged.quant.grid import Grid
from edged.quant.objective import row_loss


def descend(W: Tensor, H: Tensor, grid: Grid, start: QuantizedRows, passes: int) -> QuantizedRows:
    """Visit all columns `passes` times, setting q_j <- Q(q_j - [(Q - W) H]_j / H_jj).

    With all other codes fixed that is the best code for column j, so no step raises a row's loss but by rounding; a
    row that ends higher than it began keeps its codes.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        grid: Fixed scales, one per row.
        start: Codes to improve. Not modified.
        passes: How often to visit each column.
    """
    # Columns as rows, so that each is contiguous.
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
    # Both losses by the same formula: a difference between two ways of summing must not decide.
    before = QuantizedRows(start.codes, row_loss(grid.decode(start.codes) - W, H))
    after = codes.t().contiguous()
    return better_rows(before, QuantizedRows(after, row_loss(grid.decode(after) - W, H)))
