"""Compare a quantized model with full precision on the held-out images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
from edged.evaluation.gates import ROUNDING, Gates
from edged.evaluation.variation import Variation
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
        Totals "held_out_images", "agreement" (percent), "relative_error" (|q - fp|^2 / |fp|^2 of the outputs) and
        "variation" (largest difference of an output between images, relative to the largest one, of "fp32" and
        "quantized"; empty if all images are equal); for a classifier with labels "chance" (percent of the most frequent
        class), for a detector "boxes". With labels "fp32", "quantized" and "drop", each with "top1" and "top5", or
        "map50" and "map50_95", in percent.

    Raises:
        GateError: The quantized model's output is not finite.
    """
    (found,) = evaluate_each([compressed], architecture, labels, spec)
    if isinstance(found, GateError):
        raise found
    return found


def evaluate_each(
    variants: Sequence[Compressed], architecture: Architecture, labels: Labels, spec: DetectionSpec
) -> list[Evaluation | GateError]:
    """Compare variants of a quantized model with full precision, which is computed once.

    Args:
        variants: One network, quantized and served in several ways.
        architecture: Architecture of the network.
        labels: Labels of the held-out images.
        spec: Rules for the predictions of a detector that become boxes when it is served; not used for a classifier.

    Returns:
        For each variant what `evaluate` returns or raises.
    """
    if architecture.plan is None:
        found = [_evaluate_classifier(variant, labels) for variant in variants]
    else:
        found = _evaluate_detector(variants, architecture.plan, labels, spec)
    common = {"task": architecture.task, "held_out_images": len(variants[0].cache.held_out)}
    return [
        each if isinstance(each, GateError) else Evaluation(common | _with_drop(each.totals), each.boxes)
        for each in found
    ]


def _with_drop(totals: dict[str, Any]) -> dict[str, Any]:
    if "fp32" not in totals:
        return totals
    return totals | {"drop": {key: totals["fp32"][key] - totals["quantized"][key] for key in totals["fp32"]}}


def _evaluate_classifier(compressed: Compressed, labels: Labels) -> Evaluation | GateError:
    reference, logits = compressed.reference_logits, compressed.logits
    if not _is_finite(logits):
        return _not_finite()
    closeness = fidelity(reference, logits)
    totals: dict[str, Any] = {
        "agreement": closeness.agreement,
        "relative_error": closeness.relative_error if math.isfinite(closeness.relative_error) else None,
        "variation": _variation(Variation().add(reference), Variation().add(logits), compressed.cache),
    }
    if labels.classes is not None:
        totals["chance"] = 100.0 * int(labels.classes.bincount().max()) / len(labels.classes)
        for key, outputs in (("fp32", reference), ("quantized", logits)):
            score = accuracy(outputs, labels.classes)
            totals[key] = {"top1": score.top1, "top5": score.top5}
    return Evaluation(totals)


class _Boxes:
    """What a detector finds on the held-out images, a batch at a time.

    Attributes:
        served: Boxes of each image as they are served.
        scored: Boxes of each image that mAP counts.
        error: Squared difference of the raw outputs from full precision.
        finite: Whether all outputs were finite; the images after a batch that was not are left out.
        variation: How far the raw outputs move from image to image.
    """

    def __init__(self) -> None:
        self.served: list[Detections] = []
        self.scored: list[Detections] = []
        self.error = 0.0
        self.finite = True
        self.variation = Variation()


def _evaluate_detector(
    variants: Sequence[Compressed], plan: Plan, labels: Labels, spec: DetectionSpec
) -> list[Evaluation | GateError]:
    first = variants[0]
    cache, batch_size, power = first.cache, first.batch_size, 0.0
    full, quantized = _Boxes(), [_Boxes() for _ in variants]

    def find(found: _Boxes, outputs: Tensor, part: Tensor) -> None:
        found.variation.add(outputs)
        found.served += detections_of(outputs, plan, cache, part, spec)
        if labels.boxes is not None:
            found.scored += detections_of(outputs, plan, cache, part, EVALUATION)

    for start in range(0, len(cache.held_out), batch_size):  # one batch's outputs of two networks are in memory
        part = cache.held_out[start : start + batch_size]
        with exact_float32(device_of(first.full)):
            reference = predict(first.full, cache, part, batch_size)
        power += squared_error(reference)
        find(full, reference, part)
        for variant, found in zip(variants, quantized, strict=True):
            if not found.finite:
                continue
            with exact_float32(device_of(first.full)):
                raw = predict(variant.served, cache, part, batch_size)
            found.finite = _is_finite(raw)
            if found.finite:
                found.error += squared_error(reference, raw)
                find(found, raw, part)
            del raw
        del reference
        give_back_free_memory()
    sizes = [cache.sizes[index] for index in cache.held_out.tolist()]

    @functools.cache  # full precision is scored once
    def score(found: _Boxes) -> dict[str, float]:
        assert labels.boxes is not None  # noqa: S101 - asked for only where there are labels
        precision = average_precision(found.scored, labels.boxes, sizes)
        return {"map50": precision.map50, "map50_95": precision.map50_95}

    scored = score if labels.boxes is not None else None
    return [_compared(full, found, power, cache, scored) for found in quantized]


def _compared(
    full: _Boxes,
    quantized: _Boxes,
    power: float,
    cache: ImageCache,
    score: Callable[[_Boxes], dict[str, float]] | None,
) -> Evaluation | GateError:
    if not quantized.finite:
        return _not_finite()
    each = {"fp32": full, "quantized": quantized}
    totals: dict[str, Any] = {
        "agreement": agreement(full.served, quantized.served),
        "relative_error": quantized.error / power if power else None,
        "variation": _variation(full.variation, quantized.variation, cache),
        "boxes": {key: sum(map(len, found.served)) for key, found in each.items()},
    }
    if score is not None:
        totals |= {key: score(found) for key, found in each.items()}
    return Evaluation(totals, {key: found.served for key, found in each.items()})


def _variation(full: Variation, quantized: Variation, cache: ImageCache) -> dict[str, float]:
    """Return the relative variation of both networks; {} where it says nothing, because all images are equal."""
    found = {"fp32": full.relative, "quantized": quantized.relative}
    known = {key: value for key, value in found.items() if value is not None}
    constant = any(value <= ROUNDING for value in known.values())
    return {} if constant and not images_differ(cache, cache.held_out) else known


def images_differ(cache: ImageCache, indices: Tensor) -> bool:
    """Return whether some images are not equal to the first one.

    Args:
        cache: Cache of the images.
        indices: Indices of the images, int64 [n].
    """
    first = cache.batch(indices[:1])
    return any(not torch.equal(cache.batch(index[None]), first) for index in indices[1:])


def _is_finite(outputs: Tensor) -> bool:
    return bool(outputs.isfinite().all())


def _not_finite() -> GateError:
    return GateError("the quantized model's output holds NaN or infinity; use more bits or other images")
