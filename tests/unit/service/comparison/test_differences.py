from __future__ import annotations

import math
from typing import Any

import pytest

from edged.progress import SilentListener
from service.comparison.differences import against_reference, error_of, metric_of
from service.comparison.runner import compare, measurements
from tests.support.comparisons import BASE, Recorder, row


def rows(*methods: str, bits: tuple[int, ...] = (4,), failing: str = "") -> dict[str, Any]:
    return compare(list(measurements(BASE, methods, bits)), None, SilentListener(), Recorder(failing))


@pytest.mark.parametrize("metric", ["top1", "map50_95"])
def test_the_score_that_counts_follows_the_task(metric: str):
    assert metric_of({"rows": [row(BASE, metric)]}) == metric


def test_a_difference_is_to_the_reference_at_the_same_bits():
    result = rows("rtn", "balanced", bits=(4, 2))
    found = {(each["method"], each["bits"]): against_reference(each, result) for each in result["rows"]}
    # 2,090 of 10,000 images are right with the reference alone, at both numbers of bits.
    expected = (pytest.approx(-20.9), pytest.approx(100 * math.sqrt(0.209 * 0.791 / 9999)))
    assert found["rtn", 4] == found["rtn", 2] == expected
    assert found["balanced", 4] is None
    assert result["rows"][1]["against_balanced"] == {"difference": -20.9, "standard_error": 0.4066}
    assert result["rows"][1]["score"]["standard_error"] == round(error_of(result["rows"][1]) or 0, 4)


@pytest.mark.parametrize(("methods", "failing"), [(("rtn", "balanced"), "balanced"), (("rtn",), ""), (("nncf",), "")])
def test_without_a_row_to_compare_with_there_is_no_difference(methods: tuple[str, ...], failing: str):
    result = rows(*methods, failing=failing)
    assert all(against_reference(each, result) is None for each in result["rows"])
    assert not any("against_balanced" in each for each in result["rows"])


def test_a_row_without_a_sample_has_no_error():
    result = rows("rtn", "balanced")
    del result["rows"][1]["score"]["sample"]
    assert error_of(result["rows"][1]) is None
    assert against_reference(result["rows"][1], result) == (pytest.approx(-20.9), None)
