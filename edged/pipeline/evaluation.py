"""Compare a quantized model with full precision on the held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edged.calibration.dataset import ImageCache
from edged.calibration.yolo_labels import Boxes, LabelSet, read_labels
from edged.compress import Compressed
from edged.device import device_of, exact_float32
from edged.errors import CalibrationError, GateError
from edged.evaluation.class_names import name_difference
from edged.evaluation.classification import accuracy, predict
from edged.evaluation.detection import agreement, average_precision, detections_of
from edged.evaluation.fidelity import fidelity, squared_error
from edged.evaluation.gates import Gates
from edged.memory import give_back_free_memory
from edged.models.detections import Detections
from edged.models.registry import Architecture
from edged.models.yolov5.plan import Plan
from edged.spec import EVALUATION, DetectionSpec


@dataclass(frozen=True)
class Labels:
    """The labels of the held-out images; false, with both None, if there are none that fit the model.

    Attributes:
        classes: Class index of each image of a classifier, int64 [n].
        boxes: Labeled boxes of each image of a detector; None for an image that is left out because of its labels.
        notes: What was repaired or left out, and why labels are not used, a line each.
    """

    classes: Tensor | None = None
    boxes: list[Boxes | None] | None = None
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.classes is not None or self.boxes is not None


@dataclass(frozen=True)
class Evaluation:
    """Measurements of a quantized model on the held-out images.

    Attributes:
        totals: Measured values in plain JSON types; see `evaluate`.
        boxes: For a detector, the boxes of each image that "fp32" and "quantized" find as they are served; None for a
            classifier.
    """

    totals: dict[str, Any]
    boxes: Mapping[str, list[Detections]] | None = None


def held_out_labels(cache: ImageCache, architecture: Architecture) -> Labels:
    """Return the labels of the held-out images, unless they do not fit the model's classes.

    Args:
        cache: The images; a detector's labels are stored in their folder.
        architecture: Architecture of the model.
    """
    if architecture.task == "classification":
        known = cache.labels is not None and len(cache.classes) == architecture.num_classes
        return Labels(classes=cache.labels_of(cache.held_out) if known else None)
    labels = read_labels(cache.root, [cache.files[index] for index in cache.held_out.tolist()])
    if labels is None:
        return Labels()
    labels = labels.of_model(architecture.num_classes)
    notes = (
        *labels.notes(),
        *filter(None, [labels.misfit(architecture.num_classes), misnamed(cache.names, architecture)]),
    )
    return Labels(boxes=labels.boxes if labels_fit(labels, architecture) else None, notes=notes)


def misnamed(names: Sequence[str] | None, architecture: Architecture) -> str | None:
    """Describe in one line how the names of a data.yaml differ from those of a detector; None if they do not.

    Args:
        names: Class names of the images; None if they have none.
        architecture: Architecture of the model.
    """
    if names is None or architecture.plan is None:
        return None
    difference = name_difference(architecture.plan.names, names)
    return difference and f"the model and the data.yaml differ in class names, in this order: {difference}"


def labels_fit(labels: LabelSet, architecture: Architecture) -> bool:
    """Return whether there are labeled boxes, and all of them are of classes that the model has."""
    return bool(labels) and labels.misfit(architecture.num_classes) is None


def require_labels(gates: Gates, labels: Labels, cache: ImageCache, architecture: Architecture, folder: Path) -> None:
    """Raise an error if a gate needs labels that the images do not have; called before the long work.

    Args:
        gates: Gates that the model has to pass.
        labels: Labels of the held-out images.
        cache: The images.
        architecture: Architecture of the model.
        folder: Folder that the images were read from, for the message.

    Raises:
        CalibrationError: A gate needs labels, and there are none that fit the model.
    """
    if labels or (gate := gates.need_labels) is None:
        return
    raise missing_labels(gate, len(cache.classes), architecture, folder)


def missing_labels(gate: str, folders: int, architecture: Architecture, folder: Path) -> CalibrationError:
    """Return the error that says which labels a gate lacks.

    Args:
        gate: Gate that needs labels.
        folders: Number of class folders.
        architecture: Architecture of the model.
        folder: Folder that the images were read from.
    """
    if architecture.task == "detection":
        reason = (
            f"{folder} has none for the held-out images that fit the {architecture.num_classes} classes of the"
            " detector; put YOLO label files there or drop the gate"
        )
    else:
        reason = (
            f"{folder} has {folders} class folders for {architecture.num_classes} classes;"
            " sort the images into one folder a class or drop the gate"
        )
    return CalibrationError(f"gates.{gate} needs labels, and {reason}")


def evaluate(compressed: Compressed, architecture: Architecture, labels: Labels, spec: DetectionSpec) -> Evaluation:
    """Compare the quantized model with full precision on the held-out images, and both with the labels if given.

    Args:
        compressed: Both networks and their images.
        architecture: Architecture of the networks.
        labels: Labels of the held-out images.
        spec: Rules for the predictions of a detector that become boxes when it is served; not used for a classifier.

    Returns:
        Totals "held_out_images", "agreement" (percent) and "relative_error" (|q - fp|^2 / |fp|^2 of the outputs); for a
        detector also "boxes". With labels "fp32", "quantized" and "drop", each with "top1" and "top5", or "map50" and
        "map50_95", in percent.

    Raises:
        GateError: The quantized model's output is not finite.
    """
    if architecture.plan is None:
        totals, boxes = _evaluate_classifier(compressed, labels), None
    else:
        totals, boxes = _evaluate_detector(compressed, architecture.plan, labels, spec)
    if "fp32" in totals:
        totals["drop"] = {key: totals["fp32"][key] - totals["quantized"][key] for key in totals["fp32"]}
    held_out = len(compressed.cache.held_out)
    return Evaluation({"task": architecture.task, "held_out_images": held_out, **totals}, boxes)


def _evaluate_classifier(compressed: Compressed, labels: Labels) -> dict[str, Any]:
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


def _evaluate_detector(
    compressed: Compressed, plan: Plan, labels: Labels, spec: DetectionSpec
) -> tuple[dict[str, Any], dict[str, list[Detections]]]:
    cache = compressed.cache
    networks = {"fp32": compressed.full, "quantized": compressed.served}
    served: dict[str, list[Detections]] = {key: [] for key in networks}
    scored: dict[str, list[Detections]] = {key: [] for key in networks}
    error, power = 0.0, 0.0
    batch_size = compressed.batch_size
    for start in range(0, len(cache.held_out), batch_size):  # only one batch's outputs are in memory at a time
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
