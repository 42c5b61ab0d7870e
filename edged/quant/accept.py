"""Optional steps are kept only where they lower the loss."""

from __future__ import annotations

import torch

from edged.quant.fastobq import QuantizedRows


def better_rows(current: QuantizedRows, candidate: QuantizedRows) -> QuantizedRows:
    """Each row from whichever has the lower loss; the current one where they are equal or the candidate's is NaN.

    Args:
        current: Codes [rows, d] and losses [rows] on some grid.
        candidate: Others on the same grid, with losses under the same Hessian.
    """
    better = candidate.loss < current.loss
    return QuantizedRows(
        torch.where(better[:, None], candidate.codes, current.codes), torch.where(better, candidate.loss, current.loss)
    )
