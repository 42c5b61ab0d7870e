"""Round-to-nearest: the baseline that ignores how the errors of different columns interact."""

from __future__ import annotations

from torch import Tensor

from edged.quant.fastobq import QuantizedRows
from edged.quant.grid import Grid
from edged.quant.objective import row_loss


def round_to_nearest(W: Tensor, H: Tensor, grid: Grid) -> QuantizedRows:
    """Round each weight to its nearest value on the grid.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Hessian [d, d], for the reported loss only. Not modified.
        grid: Fixed scales, one per row.

    Returns:
        Codes [rows, d] and their loss [rows], in squared output units.
    """
    codes = grid.encode(W)
    return QuantizedRows(codes, row_loss(grid.decode(codes) - W, H))
