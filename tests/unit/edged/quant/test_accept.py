from __future__ import annotations

import torch

from edged.quant.accept import better_rows
from edged.quant.fastobq import QuantizedRows


def test_each_row_keeps_the_codes_with_the_lower_loss():
    codes = torch.arange(8, dtype=torch.uint8).reshape(4, 2)
    current = QuantizedRows(codes, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    candidate = QuantizedRows(codes + 100, torch.tensor([0.5, 2.0, 3.5, torch.nan]))
    best = better_rows(current, candidate)
    assert best.loss.tolist() == [0.5, 2.0, 3.0, 4.0]
    assert best.codes.tolist() == [[100, 101], [2, 3], [4, 5], [6, 7]]
