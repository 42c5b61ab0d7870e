"""The gates that a quantized model must pass before it may be served. Imports no torch: the supervisor reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.errors import GateError

# Task -> the metric that max_drop and min_accuracy limit: its key in the report, and its name in messages.
METRICS: Mapping[str, tuple[str, str]] = {
    "classification": ("top1", "top-1"),
    "detection": ("map50_95", "mAP50-95"),
}


@dataclass(frozen=True)
class Gates:
    """What a quantized model must reach on the held-out images.

    Attributes:
        min_agreement: Least agreement with the full-precision model, percent: of images by their top class, of a
            detector's boxes.
        max_drop: Most points of top-1, or of mAP50-95, that may be lost; None for no limit. Needs labels.
        min_accuracy: Least top-1, or mAP50-95, of the quantized model, percent; None for no limit. Needs labels.
    """

    min_agreement: float = 50.0
    max_drop: float | None = None
    min_accuracy: float | None = None

    @property
    def need_labels(self) -> str | None:
        """Name of the first gate that needs labels; None if there is none."""
        if self.max_drop is not None:
            return "max_drop"
        return None if self.min_accuracy is None else "min_accuracy"


def check_gates(totals: Mapping[str, Any], gates: Gates) -> None:
    """Raise an error if a quantized model does not reach what its gates ask for.

    Args:
        totals: "agreement" in percent; with labels "fp32" and "quantized", each with the task's metric; "task".
        gates: What is asked for.

    Raises:
        GateError: A gate is not passed; the message has the value and the limit.
    """
    task = totals.get("task", "classification")
    if totals["agreement"] < gates.min_agreement:
        share = "of the held-out images" if task == "classification" else "of the boxes in the held-out images"
        raise GateError(
            f"agrees with the full-precision model on {totals['agreement']:.1f} % {share},"
            f" gates.min_agreement is {gates.min_agreement:g} %; use more bits or better calibration images"
        )
    if "fp32" in totals:
        key, name = METRICS[task]
        _check_accuracy(name, totals["fp32"][key], totals["quantized"][key], gates)


def _check_accuracy(name: str, full: float, quantized: float, gates: Gates) -> None:
    if gates.max_drop is not None and full - quantized > gates.max_drop:
        raise GateError(
            f"{name} falls by {full - quantized:.2f} points to {quantized:.2f} %,"
            f" gates.max_drop is {gates.max_drop:g}; use more bits or better calibration images"
        )
    if gates.min_accuracy is not None and quantized < gates.min_accuracy:
        remedy = "use more bits" if full >= gates.min_accuracy else "drop a better checkpoint"
        raise GateError(
            f"{name} is {quantized:.2f} % on the held-out images, {full:.2f} % in full precision, and"
            f" gates.min_accuracy is {gates.min_accuracy:g} %; {remedy}"
        )
