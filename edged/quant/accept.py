"""Keep the result of an optional step only in the rows whose loss it lowers."""

from __future__ import annotations

import torch

from edged.quant.fastobq import QuantizedRows


def better_rows(current: QuantizedRows, candidate: QuantizedRows) -> QuantizedRows:
    """Choose for each row the codes with the lower loss.

    A row keeps its current codes where the losses are equal or the candidate's loss is NaN.

    Args:
        current: Codes [rows, d] and losses [rows] on some grid.
        candidate: Alternative codes and losses on the same grid and under the same Hessian.

    Returns:
        The chosen codes [rows, d] and their losses [rows].
    """
    better = candidate.loss < current.loss
    return QuantizedRows(
        torch.where(better[:, None], candidate.codes, current.codes), torch.where(better, candidate.loss, current.loss)
    )
