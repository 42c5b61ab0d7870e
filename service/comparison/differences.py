"""How certain the scores of a comparison are: standard errors, and differences to the reference method. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edged.evaluation.standard_errors import standard_error
from service.comparison.job import REFERENCE

Row = Mapping[str, Any]


def metric_of(result: Mapping[str, Any]) -> str:
    """Return the score that counts: "top1" of a classifier, "map50_95" of a detector."""
    return "top1" if "top1" in result["rows"][0]["score"] else "map50_95"


def error_of(row: Row) -> float | None:
    """Return the standard error of a row's score, in points; None if the row does not have what that takes."""
    sample = row.get("score", {}).get("sample")
    return None if sample is None else _known(standard_error(sample))


def against_reference(row: Row, result: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """Return a row's score less that of the reference method at the same bits, with the standard error of that.

    Args:
        row: A row of the result.
        result: What `service.comparison.runner.compare` returns.

    Returns:
        Difference and its paired standard error on the same images, in points; None for the reference itself, for a
        row without a score, and where the reference was not measured with the same bits of weights and activations.
    """
    if "score" not in row or row["method"] == REFERENCE:
        return None
    for other in result["rows"]:
        if other["method"] == REFERENCE and "score" in other and _bits(other) == _bits(row):
            metric = metric_of(result)
            samples = [each["score"].get("sample") for each in (row, other)]
            error = None if None in samples else _known(standard_error(*samples))
            return row["score"][metric] - other["score"][metric], error
    return None


def _bits(row: Row) -> tuple[int, int | None]:
    return row["bits"], row["activation_bits"]


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error
