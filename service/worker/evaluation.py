"""How a quantized model does on the held-out images, and whether that will do. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edged.calibration.dataset import ImageCache
from edged.calibration.yolo_labels import Boxes, read_labels
from edged.compress import Compressed
from edged.device import device_of, exact_float32
from edged.errors import GateError
from edged.evaluation.classification import accuracy, predict
from edged.evaluation.detection import agreement, average_precision, detections_of
from edged.evaluation.fidelity import fidelity, squared_error
from edged.memory import give_back_free_memory
from edged.models.detections import Detections
from edged.models.registry import Architecture
from edged.models.yolov5.plan import Plan
from edged.spec import EVALUATION, DetectionSpec
from service.worker.job import Gates

# Task -> the figure that max_drop and min_accuracy are about: its key in the report, and what people call it.
FIGURES: Mapping[str, tuple[str, str]] = {
    "classification": ("top1", "top-1"),
    "detection": ("map50_95", "mAP50-95"),
}


@dataclass(frozen=True)
class Evaluation:
    """What was found on the held-out images.

    Attributes:
        totals: Figures, JSON types; see `evaluate`.
        boxes: Of a detector: what "fp32" and "quantized" see in each image as it will be served; None of a classifier.
    """

    totals: dict[str, Any]
    boxes: Mapping[str, list[Detections]] | None = None


@dataclass(frozen=True)
class Labels:
    """What is known of the held-out images; all None without labels that fit the model.

    Attributes:
        classes: Of a classifier's images, int64 [n].
        boxes: Of a detector's images, an entry each.
    """

    classes: Tensor | None = None
    boxes: list[Boxes] | None = None

    def __bool__(self) -> bool:
        return self.classes is not None or self.boxes is not None


def held_out_labels(cache: ImageCache, architecture: Architecture, folder: Path) -> Labels:
    """The labels of the held-out images, unless they mean something else than the model's classes.

    Args:
        cache: The images.
        architecture: Of the model.
        folder: Where the images were read from; a detector's labels lie there.

    Raises:
        CalibrationError: A label file cannot be read or understood.
    """
    if architecture.task == "classification":
        known = cache.labels is not None and len(cache.classes) == architecture.num_classes
        return Labels(classes=cache.labels_of(cache.held_out) if known else None)
    boxes = read_labels(folder, [cache.files[index] for index in cache.held_out.tolist()])
    return Labels(boxes=boxes if boxes is not None and fits(boxes, architecture) else None)


def fits(boxes: list[Boxes], architecture: Architecture) -> bool:
    """Whether there are boxes, and all of them of classes that the model has."""
    numbers = [number for entry in boxes for number in entry.classes.tolist()]
    return bool(numbers) and max(numbers) < architecture.num_classes


def evaluate(
    compressed: Compressed, cache: ImageCache, architecture: Architecture, labels: Labels, spec: DetectionSpec
) -> Evaluation:
    """How close the quantized model comes to full precision on the held-out images, and with labels how right it is.

    Args:
        compressed: Both networks.
        cache: The images.
        architecture: Of the networks.
        labels: Of the held-out images.
        spec: Which predictions of a detector count as boxes when it is served.

    Returns:
        Totals "held_out_images", "agreement" (percent) and "relative_error"; of a detector also "boxes". With labels
        "fp32", "quantized" and "drop", each with "top1" and "top5", or "map50" and "map50_95", in percent.

    Raises:
        GateError: The quantized model's output is not finite.
    """
    if architecture.plan is None:
        totals, boxes = _of_classifier(compressed, labels), None
    else:
        totals, boxes = _of_detector(compressed, cache, architecture.plan, labels, spec)
    if "fp32" in totals:
        totals["drop"] = {key: totals["fp32"][key] - totals["quantized"][key] for key in totals["fp32"]}
    return Evaluation({"task": architecture.task, "held_out_images": len(cache.held_out), **totals}, boxes)


def check_gates(totals: Mapping[str, Any], gates: Gates) -> None:
    """Let nothing pass that would serve worse than the user allows.

    Args:
        totals: From `evaluate`.
        gates: What is asked for.

    Raises:
        GateError: With both figures.
    """
    task = totals.get("task", "classification")
    if totals["agreement"] < gates.min_agreement:
        what = "of the held-out images" if task == "classification" else "of the boxes in the held-out images"
        raise GateError(
            f"agrees with the full-precision model on {totals['agreement']:.1f} % {what},"
            f" gates.min_agreement is {gates.min_agreement:g} %; use more bits or better calibration images"
        )
    if "fp32" in totals:
        key, name = FIGURES[task]
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


def _of_classifier(compressed: Compressed, labels: Labels) -> dict[str, Any]:
    reference, logits = compressed.reference_logits, compressed.logits
    _check_finite(logits)
    closeness = fidelity(reference, logits)
    totals: dict[str, Any] = {
        "agreement": closeness.agreement,
        "relative_error": closeness.relative_error if math.isfinite(closeness.relative_error) else None,
    }
    if labels.classes is not None:
        for key, outputs in (("fp32", reference), ("quantized", logits)):
            score = accuracy(outputs, labels.classes)
            totals[key] = {"top1": score.top1, "top5": score.top5}
    return totals


def _of_detector(
    compressed: Compressed, cache: ImageCache, plan: Plan, labels: Labels, spec: DetectionSpec
) -> tuple[dict[str, Any], dict[str, list[Detections]]]:
    networks = {"fp32": compressed.full, "quantized": compressed.model}
    served: dict[str, list[Detections]] = {key: [] for key in networks}
    scored: dict[str, list[Detections]] = {key: [] for key in networks}
    error, power = 0.0, 0.0
    batch_size = compressed.batch_size
    for start in range(0, len(cache.held_out), batch_size):  # the outputs of a batch are in memory at a time
        part = cache.held_out[start : start + batch_size]
        with exact_float32(device_of(compressed.full)):
            raw = {key: predict(network, cache, part, batch_size) for key, network in networks.items()}
        _check_finite(raw["quantized"])
        error += squared_error(raw["fp32"], raw["quantized"])
        power += squared_error(raw["fp32"])
        for key, outputs in raw.items():
            served[key] += detections_of(outputs, plan, cache, part, spec)
            if labels.boxes is not None:
                scored[key] += detections_of(outputs, plan, cache, part, EVALUATION)
        del raw, outputs
        give_back_free_memory()
    totals: dict[str, Any] = {
        "agreement": agreement(served["fp32"], served["quantized"]),
        "relative_error": error / power if power else None,
        "boxes": {key: sum(map(len, found)) for key, found in served.items()},
    }
    if labels.boxes is not None:
        sizes = [cache.sizes[index] for index in cache.held_out.tolist()]
        for key, found in scored.items():
            score = average_precision(found, labels.boxes, sizes)
            totals[key] = {"map50": score.map50, "map50_95": score.map50_95}
    return totals, served


def _check_finite(outputs: Tensor) -> None:
    if not bool(outputs.isfinite().all()):
        raise GateError("the quantized model's output holds NaN or infinity; use more bits or other images")
