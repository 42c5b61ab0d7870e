from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.quantization.pareto import bytes_at, document, draw, saved
from benchmarks.quantization.pareto_detector import own_boxes
from edged.evaluation.detection import average_precision
from edged.models.detections import Detections


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
        "own_drop": 9.0,
        "own_drop_error": 0.5,
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
    assert "| W4 | 1,000 | 4 | 29.00 | +1.00 ± 0.25 | 9.00 ± 0.50 | 90.00 | 2.00e-02 | 1.0 |" in page
    assert page.index("auto, 2 to 6 | 800") < page.index("auto, 2 to 6 | 900") < page.index("W4 | 1,000")
    assert draw(ROWS).count("<circle") == len(ROWS) + 2  # and the legend


def test_the_page_tells_what_each_part_of_the_outputs_loses() -> None:
    alone = {"drop": 0.5, "drop_error": 0.1, "own_drop": 4.0, "own_drop_error": 1.0}
    whole = {**ROWS[0], "parts": {"boxes": {**alone, "drop": 0.75}, "scores": alone}}
    page = " ".join(document([whole, *ROWS[1:]]).split())
    assert (
        "quantized at W4, boxes lose 0.75 ± 0.10 points (4.0 ± 1.0 by own boxes) and scores lose 0.50 ± 0.10 points"
    ) in page
    assert "quantized at" not in document(ROWS)


def test_by_its_own_boxes_a_detector_is_perfect_and_one_that_misses_a_box_is_not() -> None:
    boxes = np.array([[10, 20, 50, 60], [5, 5, 90, 30]], np.float32)
    full = [Detections(boxes, np.array([0.9, 0.5], np.float32), np.array([1, 1]))]
    sizes = [(100, 80)]
    labels = own_boxes(full, sizes)
    assert average_precision(full, labels, sizes).map50_95 == pytest.approx(100)
    half = [Detections(boxes[:1], full[0].scores[:1], full[0].classes[:1])]
    assert average_precision(half, labels, sizes).map50_95 == pytest.approx(100 * 51 / 101)  # recalls up to a half
