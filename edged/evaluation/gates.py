"""The gates that a quantized model must pass before it may be served. Imports no torch: the supervisor reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.errors import GateError
from edged.evaluation.chance import is_chance

# Largest difference between images, relative to the largest output, that rounding can explain. Networks with random
# weights reach 1e-5 and more, trained ones 0.1 and more.
ROUNDING = 1e-6
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
        varied_outputs: Whether the outputs must differ from image to image.
        above_chance: Whether top-1 must be better than chance, where there are labels, and enough of them to say so.
        plausible_weights: Whether weights of absurd size are rejected; see `edged.models.magnitudes`.
    """

    min_agreement: float = 50.0
    max_drop: float | None = None
    min_accuracy: float | None = None
    varied_outputs: bool = True
    above_chance: bool = True
    plausible_weights: bool = True

    @classmethod
    def none(cls) -> Gates:
        """Return gates that every model passes."""
        return cls(min_agreement=0.0, varied_outputs=False, above_chance=False, plausible_weights=False)

    @property
    def need_labels(self) -> str | None:
        """Name of the first gate that needs labels; None if there is none."""
        if self.max_drop is not None:
            return "max_drop"
        return None if self.min_accuracy is None else "min_accuracy"


def check_gates(totals: Mapping[str, Any], gates: Gates) -> None:
    """Raise an error if a quantized model does not reach what its gates ask for.

    Args:
        totals: "agreement" in percent; with labels "fp32" and "quantized", each with the task's metric; "task"; if
            known "held_out_images", "chance" (percent) and "variation", see `edged.pipeline.evaluation.evaluate`.
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
    if gates.varied_outputs:
        for key, name in (("fp32", "full-precision"), ("quantized", "quantized")):
            found = totals.get("variation", {}).get(key)
            if found is not None and found <= ROUNDING:
                raise constant_outputs(name, found, totals["held_out_images"])
    if "fp32" in totals:
        key, name = METRICS[task]
        if gates.above_chance and "chance" in totals:
            _check_chance(totals)
        _check_accuracy(name, totals["fp32"][key], totals["quantized"][key], gates)


def constant_outputs(name: str, variation: float, images: int) -> GateError:
    """Return the error that says that a network's outputs are the same for all images.

    Args:
        name: Which network, such as "quantized".
        variation: Largest difference between images, relative to the largest output.
        images: Number of images.
    """
    remedy = (
        "use more bits" if name == "quantized" else "its weights are zeroed or collapsed: drop an earlier checkpoint"
    )
    return GateError(
        f"the outputs of the {name} network are the same for all of {images} different images (they differ by"
        f" {variation:.1g} of the largest); {remedy}, or set gates.varied_outputs: false"
    )


def at_chance(finding: str) -> GateError:
    """Return the error of the gate above_chance for what `chance_finding` says."""
    return GateError(f"{finding}, or set gates.above_chance: false")


def chance_finding(name: str, correct: int, images: int, chance: float) -> str:
    """Return the text that says that a network is right as often as chance, and what to do.

    Args:
        name: Which network, such as "quantized".
        correct: Number of images that it is right on.
        images: Number of images.
        chance: Share of right answers of a constant answer, 0 to 1.
    """
    return (
        f"the {name} network is right on {correct} of {images} labeled images ({100 * correct / images:.1f} %), and"
        f" chance is {100 * chance:.1f} %; check that the class folders, sorted by name, are in the order of its"
        " classes, and input (size, mean, std), drop a better checkpoint"
    )


def _check_chance(totals: Mapping[str, Any]) -> None:
    images, chance = totals["held_out_images"], totals["chance"] / 100
    for key, name in (("fp32", "full-precision"), ("quantized", "quantized")):
        correct = round(images * totals[key]["top1"] / 100)
        if is_chance(correct, images, chance):
            raise at_chance(chance_finding(name, correct, images, chance))


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
