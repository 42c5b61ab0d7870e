"""Round to nearest: the baseline that ignores how errors act together."""

from __future__ import annotations

from torch import Tensor

from edged.quant.fastobq import QuantizedRows
from edged.quant.grid import Grid
from edged.quant.objective import row_loss


def round_to_nearest(W: Tensor, H: Tensor, grid: Grid) -> QuantizedRows:
    """Each weight to its nearest grid value.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Hessian [d, d], for the reported loss only. Not modified.
        grid: Fixed scales, one per row.
    """
    codes = grid.encode(W)
    return QuantizedRows(codes, row_loss(grid.decode(codes) - W, H))
