from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quantization.pareto import bytes_at, document, draw, saved


def row(method: str, bits: float, size: int, error: float, drop: float) -> dict[str, Any]:
    return {
        "network": "yolov5n",
        "method": method,
        "bits": bits,
        "bytes": size,
        "relative_error": error,
        "map50_95": 30 - drop,
        "drop": drop,
        "drop_error": 0.25,
        "agreement": 90.0,
        "seconds": 1.0,
        "widths": [2, 6],
    }


ROWS = [row("uniform", 4.0, 1000, 0.02, 1.0), row("auto", 3.0, 800, 0.04, 1.5), row("auto", 3.5, 900, 0.01, 0.5)]


def test_the_bytes_at_an_error_are_between_those_of_the_rows_around_it() -> None:
    auto = ROWS[1:]
    assert bytes_at(auto, 0.02) == pytest.approx(850)  # half way on a logarithmic scale
    assert bytes_at(auto, 0.04) == pytest.approx(800)
    assert bytes_at(auto, 0.05) is None
    assert bytes_at(auto[:1], 0.04) is None


def test_what_is_saved_is_told_by_the_drop_and_by_the_error() -> None:
    assert saved(ROWS) == "Fewer bytes than uniform W4: 10 % by what is lost, 15 % by the relative error, interpolated."
    worse = [ROWS[0], row("auto", 3.0, 800, 0.04, 1.5)]
    assert saved(worse) == ""
    assert saved(ROWS[1:]) == ""  # nothing to compare with


def test_the_page_of_a_detector_has_a_row_for_each_artifact_and_a_picture() -> None:
    page = document(ROWS, "picture")
    assert "| W4 | 1,000 | 4 | 29.00 | +1.00 ± 0.25 | 90.00 | 2.00e-02 | 1.0 |" in page
    assert page.index("auto, 2 to 6 | 800") < page.index("auto, 2 to 6 | 900") < page.index("W4 | 1,000")
    assert draw(ROWS).count("<circle") == len(ROWS) + 2  # and the legend
