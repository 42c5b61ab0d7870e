"""Which measured values let a quantized model pass."""

from __future__ import annotations

import contextlib

import pytest

from edged.errors import GateError
from edged.evaluation.gates import Gates, check_gates


def test_gates_of_a_detector() -> None:
    totals = {
        "task": "detection",
        "agreement": 90.0,
        "fp32": {"map50": 53.0, "map50_95": 34.0},
        "quantized": {"map50": 40.0, "map50_95": 33.0},
    }
    check_gates(totals, Gates(min_agreement=90.0, max_drop=1.0))
    with pytest.raises(GateError, match=r"90\.0 % of the boxes in the held-out images"):
        check_gates(totals, Gates(min_agreement=90.1))
    with pytest.raises(GateError, match=r"mAP50-95 falls by 1\.00 points to 33\.00 %"):
        check_gates(totals, Gates(max_drop=0.9))


def test_gates_compare_points_and_percent() -> None:
    totals = {"agreement": 90.0, "fp32": {"top1": 80.0}, "quantized": {"top1": 78.5}}
    check_gates(totals, Gates(min_agreement=90.0, max_drop=1.5))
    check_gates({"agreement": 90.0}, Gates(max_drop=0.0))
    with pytest.raises(GateError, match=r"90\.0 % of the held-out"):
        check_gates(totals, Gates(min_agreement=90.1))
    with pytest.raises(GateError, match=r"top-1 falls by 1\.50 points to 78\.50 %"):
        check_gates(totals, Gates(max_drop=1.4))


@pytest.mark.parametrize(
    ("full", "least", "reason"),
    [
        (80.0, 78.5, None),
        (
            80.0,
            79.0,
            r"top-1 is 78\.50 % .*, 80\.00 % in full precision, and .* is 79 %; use more bits",
        ),
        (80.0, 81.0, r"gates\.min_accuracy is 81 %; drop a better checkpoint"),  # no bits would do
    ],
)
def test_an_absolute_accuracy(full: float, least: float, reason: str | None) -> None:
    totals = {"agreement": 90.0, "fp32": {"top1": full}, "quantized": {"top1": 78.5}}
    expected = contextlib.nullcontext() if reason is None else pytest.raises(GateError, match=reason)
    with expected:
        check_gates(totals, Gates(min_accuracy=least))


def test_an_absolute_accuracy_of_a_detector() -> None:
    figures = {"fp32": {"map50": 53.0, "map50_95": 34.0}, "quantized": {"map50": 52.0, "map50_95": 33.0}}
    totals = {"task": "detection", "agreement": 90.0, **figures}
    check_gates(totals, Gates(min_accuracy=33.0))
    with pytest.raises(GateError, match=r"mAP50-95 is 33\.00 % .* gates\.min_accuracy is 33\.5 %"):
        check_gates(totals, Gates(min_accuracy=33.5))


@pytest.mark.parametrize(
    ("variation", "reason"),
    [
        ({"fp32": 0.3, "quantized": 0.2}, None),
        ({"fp32": 1e-5, "quantized": 1e-5}, None),  # as random weights may have
        ({}, None),
        ({"fp32": 0.0, "quantized": 0.0}, r"full-precision network are the same .* drop an earlier checkpoint"),
        (
            {"fp32": 0.3, "quantized": 1e-7},
            r"quantized network .* all of 20 .* by 1e-07 .* use more bits, or set gates",
        ),
    ],
)
def test_outputs_must_vary(variation: dict[str, float], reason: str | None) -> None:
    totals = {"agreement": 100.0, "held_out_images": 20, "variation": variation}
    expected = contextlib.nullcontext() if reason is None else pytest.raises(GateError, match=reason)
    with expected:
        check_gates(totals, Gates())
    check_gates(totals, Gates(varied_outputs=False))


def test_top1_must_be_above_chance() -> None:
    def totals(full: float, quantized: float, images: int = 100) -> dict[str, object]:
        found = {"fp32": {"top1": full}, "quantized": {"top1": quantized}}
        return {"agreement": 100.0, "held_out_images": images, "chance": 10.0, **found}

    check_gates(totals(90, 88), Gates())
    check_gates(totals(10, 10, 20), Gates())
    with pytest.raises(
        GateError, match=r"full-precision network is right on 10 of 100 .* \(10\.0 %\), and chance is 10"
    ):
        check_gates(totals(10, 10), Gates())
    with pytest.raises(GateError, match="quantized network is right on 8 of 100"):
        check_gates(totals(90, 8), Gates())
    check_gates(totals(10, 10), Gates(above_chance=False))
