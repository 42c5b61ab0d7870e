"""Fidelity of a quantized model to its full-precision original, measured without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.errors import CalibrationError
from edged.evaluation.classification import predict
from edged.memory import give_back_free_memory
from edged.models.nms import iou_of
from edged.models.yolov5.decode import corners_of, decode_some, logit
from edged.models.yolov5.plan import Plan
from edged.spec import EVALUATION


@dataclass(frozen=True)
class Fidelity:
    """A comparison of two models on the same images.

    Attributes:
        agreement: Share of images for which both models rank the same class first, in percent. It does not apply to
            detectors; `edged.evaluation.detection.agreement` does.
        relative_error: Relative error |q - fp|^2 / |fp|^2 over all logits, 0 for equal logits and 1 for all-zero ones.
    """

    agreement: float
    relative_error: float


def fidelity(reference: Tensor, logits: Tensor) -> Fidelity:
    """Compare logits, or a detector's raw outputs.

    Args:
        reference: Full-precision logits fp [n, classes], or outputs of any shape [n, ...].
        logits: Quantized logits q or outputs, of the same shape.

    Returns:
        The agreement and the error; the error is infinite if only the reference is all zero.

    Raises:
        CalibrationError: The shapes differ, or there are no images.
    """
    if reference.shape != logits.shape or not reference.numel():
        raise CalibrationError(
            f"cannot compare logits {list(logits.shape)} with {list(reference.shape)}; give both models the same images"
        )
    agreement = 100.0 * float((reference.flatten(1).argmax(1) == logits.flatten(1).argmax(1)).double().mean())
    return Fidelity(agreement, _ratio(squared_error(reference, logits), squared_error(reference)))


def squared_error(reference: Tensor, other: Tensor | None = None) -> float:
    """Compute |other - reference|^2 over all entries, or |reference|^2 without `other`, summed in float64.

    Args:
        reference: Reference outputs [n, ...]. Not modified.
        other: Outputs of the same shape. Not modified.
    """
    # Image by image, because in float64 the outputs of a detector take 17 MB per image.
    others = [None] * len(reference) if other is None else other
    pairs = zip(reference, others, strict=True)
    return sum(float((fp.double() if q is None else q.double() - fp.double()).square().sum()) for fp, q in pairs)


def detection_error(reference: Tensor, raw: Tensor, plan: Plan, side: int) -> float:
    """Compute the error of a detector's scores and boxes, summed over images.

        sum over scores of (s - s_fp)^2  +  sum over boxes of c (1 - IoU)^2

    A score s is objectness times class probability. IoU is that of a box with the box of full precision, and c the best
    score that full precision gives it. Mean average precision counts a box by its IoU: an error in pixels matters more
    for a small box. Only predictions that an evaluation would count, before or after, are looked at.

    Args:
        reference: Full-precision raw outputs [n, predictions, 5 + classes]. Not modified.
        raw: Quantized raw outputs of the same shape. Not modified.
        plan: Plan of the detector.
        side: Side of the square images in pixels.
    """
    limit = logit(EVALUATION.confidence)  # a score is at most its objectness
    total = 0.0
    for full, other in zip(reference.cpu().numpy(), raw.cpu().numpy(), strict=True):
        chosen = np.flatnonzero(np.maximum(full[:, 4], other[:, 4]) > limit)
        before, after = (decode_some(each, chosen, plan, side, side) for each in (full, other))
        scores, others = (each[:, 5:] * each[:, 4:5] for each in (before, after))
        lost = 1 - iou_of(corners_of(before[:, :4]), corners_of(after[:, :4]))
        total += float(np.square(others - scores).sum(dtype=np.float64))
        total += float((scores.max(1) * np.square(lost)).sum(dtype=np.float64))
    return total


def relative_errors(
    full: nn.Module | Tensor,
    candidates: Sequence[nn.Module],
    cache: ImageCache,
    indices: Tensor,
    batch_size: int = 32,
) -> list[float]:
    """Compute the relative error of each candidate, holding the outputs of only one batch in memory.

    Args:
        full: Full-precision network, or its outputs [n, ...] where these are known.
        candidates: Quantized networks whose outputs have the same shape.
        cache: Cache of the images.
        indices: Indices of the images, int64 [n].
        batch_size: Number of images per forward pass.

    Returns:
        One relative error per candidate; see `Fidelity`.
    """
    power, errors = 0.0, [0.0] * len(candidates)
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        if isinstance(full, Tensor):
            reference = full[start : start + batch_size]
        else:
            reference = predict(full, cache, part, batch_size)
        power += squared_error(reference)
        for number, candidate in enumerate(candidates):
            errors[number] += squared_error(reference, predict(candidate, cache, part, batch_size))
        del reference
        if not isinstance(full, Tensor):
            give_back_free_memory()  # after large maps the C library keeps more than the next batch needs
    return [_ratio(error, power) for error in errors]


def _ratio(error: float, power: float) -> float:
    if power == 0:
        return 0.0 if error == 0 else float("inf")
    return error / power
