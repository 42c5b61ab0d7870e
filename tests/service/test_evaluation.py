"""What the figures of the held-out images are, and which of them let a model pass."""

from __future__ import annotations

import pytest

from edged.errors import GateError
from service.evaluation import check_gates
from service.job import Gates


def test_gates_compare_points_and_percent() -> None:
    totals = {"agreement": 90.0, "fp32": {"top1": 80.0}, "quantized": {"top1": 78.5}}
    check_gates(totals, Gates(min_agreement=90.0, max_drop=1.5))
    check_gates({"agreement": 90.0}, Gates(max_drop=0.0))
    with pytest.raises(GateError, match=r"90\.0 % of the held-out"):
        check_gates(totals, Gates(min_agreement=90.1))
    with pytest.raises(GateError, match=r"top-1 falls by 1\.50 points to 78\.50 %"):
        check_gates(totals, Gates(max_drop=1.4))
