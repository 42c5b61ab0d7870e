"""Mean average precision (mAP) of a detector, and the agreement of two detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.calibration.yolo_labels import Boxes
from edged.errors import CalibrationError
from edged.evaluation.classification import predict
from edged.models.detections import Detections, shared_boxes
from edged.models.nms import pairwise_iou
from edged.models.yolov5.decode import detect
from edged.models.yolov5.plan import Plan
from edged.progress import ProgressListener, SilentListener
from edged.spec import EVALUATION, DetectionSpec

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0, 1, 101)
MAX_PER_CLASS = 100  # boxes of one class in one image that count, as in COCO's evaluation
GROUPS = 20  # groups of images that are left out in turn


@dataclass(frozen=True)
class Precision:
    """Mean average precision as COCO defines it: averaged over 101 recalls, then over the classes that occur.

    Attributes:
        map50: Mean average precision at an IoU of 0.5, in percent.
        map50_95: Mean over the IoUs 0.5, 0.55, ..., 0.95, in percent.
        images: Number of images that are not left out.
        boxes: Number of labeled boxes in the images.
    """

    map50: float
    map50_95: float
    images: int
    boxes: int


@dataclass(frozen=True)
class _Matched:
    """The detections of one class in one image, matched to its labels.

    Attributes:
        scores: Scores of the detections [n], descending.
        hits: Whether each detection matches a label at each IoU threshold [thresholds, n].
        total: Number of labeled boxes.
    """

    scores: Floats
    hits: Flags
    total: int


def detections_of(
    raw: Tensor, plan: Plan, cache: ImageCache, indices: Tensor, spec: DetectionSpec = EVALUATION
) -> list[Detections]:
    """Convert raw outputs to detections.

    Args:
        raw: Outputs of `predict` for these images [n, predictions, 5 + classes].
        plan: Plan of the network.
        cache: Cache of letterboxed images.
        indices: Indices of the images, int64 [n].
        spec: Thresholds that select the predictions.

    Returns:
        Boxes in pixels of the original images, one entry per image.
    """
    side = cache.input.size
    return [
        detect(outputs, plan, side, side, spec).in_original(cache.letterbox(index))
        for outputs, index in zip(raw.numpy(), indices.tolist(), strict=True)
    ]


def detect_all(
    model: nn.Module,
    plan: Plan,
    cache: ImageCache,
    indices: Tensor,
    spec: DetectionSpec = EVALUATION,
    batch_size: int = 8,
    listener: ProgressListener | None = None,
) -> list[Detections]:
    """Run a detector on images, holding the raw outputs of only one batch in memory (9 MB per image).

    Args:
        model: Detector that returns raw outputs.
        plan: Plan of the detector.
        cache: Cache of letterboxed images.
        indices: Indices of the images, int64 [n].
        spec: Thresholds that select the predictions.
        batch_size: Number of images per forward pass.
        listener: Listener that is notified of the number of images done.

    Returns:
        Boxes in pixels of the original images, one entry per image.
    """
    listener = listener or SilentListener()
    found: list[Detections] = []
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        found += detections_of(predict(model, cache, part, batch_size), plan, cache, part, spec)
        listener.progress(len(found), len(indices))
    return found


def average_precision(
    found: Sequence[Detections], labels: Sequence[Boxes | None], sizes: Sequence[tuple[int, int]]
) -> Precision:
    """Score detections against labels.

    Args:
        found: Detections of each image, boxes in pixels.
        labels: Labeled boxes of each image; None for an image that is left out.
        sizes: Width and height of each image, in pixels.

    Raises:
        CalibrationError: There are no labeled boxes, or the arguments differ in length.
    """
    matched = _matched(found, labels, sizes)
    average = _mean_average(matched) * 100
    images = sum(truth is not None for truth in labels)
    total = sum(image.total for each in matched.values() for image in each.values())
    return Precision(float(average[0]), float(average.mean()), images, total)


def average_precision_without(
    found: Sequence[Detections], labels: Sequence[Boxes | None], sizes: Sequence[tuple[int, int]], groups: int = GROUPS
) -> list[float]:
    """Score detections without each group of images in turn, from which the standard error of mAP50-95 follows.

    Args:
        found: Detections of each image, boxes in pixels.
        labels: Labeled boxes of each image; None for an image that is left out.
        sizes: Width and height of each image, in pixels.
        groups: Number of groups, at most; image i belongs to group i modulo this number.

    Returns:
        mAP50-95 in percent without each group, of those that leave a labeled box.

    Raises:
        CalibrationError: There are no labeled boxes, or the arguments differ in length.
    """
    matched = _matched(found, labels, sizes)
    values = []
    for group in range(min(groups, len(found))):
        rest = {
            kind: {image: each for image, each in images.items() if image % groups != group}
            for kind, images in matched.items()
        }
        labeled = {kind: images for kind, images in rest.items() if any(each.total for each in images.values())}
        if labeled:
            values.append(float(_mean_average(labeled).mean()) * 100)
    return values


def _matched(
    found: Sequence[Detections], labels: Sequence[Boxes | None], sizes: Sequence[tuple[int, int]]
) -> dict[int, dict[int, _Matched]]:
    """Return for each class that is labeled somewhere what was matched, by the index of the image.

    Raises:
        CalibrationError: There are no labeled boxes, or the arguments differ in length.
    """
    if not len(found) == len(labels) == len(sizes):
        raise CalibrationError(f"cannot score {len(found)} images against {len(labels)} labels; give one for each")
    classes = sorted({kind for truth in labels if truth is not None for kind in truth.classes.tolist()})
    if not classes:
        raise CalibrationError("the labels have no boxes; label some images to measure mAP")
    matched: dict[int, dict[int, _Matched]] = {kind: {} for kind in classes}
    for index, (seen, truth, size) in enumerate(zip(found, labels, sizes, strict=True)):
        if truth is None:
            continue
        boxes, kinds = truth.in_pixels(*size).numpy(), truth.classes.numpy()
        for kind in {*kinds.tolist(), *seen.classes.tolist()} & matched.keys():
            matched[kind][index] = _match(seen, boxes[kinds == kind], kind)
    return matched


def _mean_average(matched: Mapping[int, Mapping[int, _Matched]]) -> Floats:
    """Return the mean over classes of the average precision at each IoU threshold [thresholds], from 0 to 1."""
    average: Floats = np.mean([_averages(list(images.values())) for images in matched.values()], axis=0)
    return average


def agreement(reference: Sequence[Detections], found: Sequence[Detections]) -> float:
    """Compute the share of boxes that two detectors have in common, 2 m / (a + b), in percent over all images.

    m is the number of pairs of boxes of one class with an IoU of at least MATCH_IOU. Each box is in at most one pair:
    in descending order of score, each reference box is paired with the box that it overlaps most. a and b are the
    numbers of boxes of the two detectors. 100 means the same boxes (or none on both sides), 0 none in common.

    Args:
        reference: Detections of the full-precision network, one entry per image.
        found: Detections of the quantized network for the same images.

    Raises:
        CalibrationError: The arguments differ in length or are empty.
    """
    if len(reference) != len(found) or not found:
        raise CalibrationError(f"cannot compare {len(found)} images with {len(reference)}; give both the same images")
    pairs = sum(shared_boxes(a, b) for a, b in zip(reference, found, strict=True))
    boxes = sum(map(len, reference)) + sum(map(len, found))
    return 100.0 * 2 * pairs / boxes if boxes else 100.0


def _match(seen: Detections, truth: npt.NDArray[np.float32], kind: int) -> _Matched:
    """Match each detection, by descending score, to the free box that it overlaps most, if the threshold is met."""
    members = np.flatnonzero(seen.classes == kind)
    scores = seen.scores[members].astype(np.float64)
    order = np.argsort(-scores, kind="stable")[:MAX_PER_CLASS]
    overlaps = pairwise_iou(seen.boxes[members[order]].astype(np.float64), truth.astype(np.float64))
    hits = np.zeros((len(THRESHOLDS), len(order)), dtype=np.bool_)
    taken = np.zeros((len(THRESHOLDS), len(truth)), dtype=np.bool_)
    rows = np.arange(len(THRESHOLDS))
    for index in range(len(order) if len(truth) else 0):
        free = np.where(taken, -1.0, overlaps[index])
        best = free.shape[1] - 1 - free[:, ::-1].argmax(1)  # the last of equal overlaps, as in COCO's evaluation
        hits[:, index] = free[rows, best] >= THRESHOLDS
        taken[rows[hits[:, index]], best[hits[:, index]]] = True
    return _Matched(scores[order], hits, len(truth))


def _averages(images: Sequence[_Matched]) -> Floats:
    """Compute the average precision of one class at each IoU threshold [thresholds]."""
    order = np.argsort(-np.concatenate([image.scores for image in images]), kind="mergesort")
    hits = np.concatenate([image.hits for image in images], axis=1)[:, order]
    right = np.cumsum(hits, axis=1, dtype=np.float64)
    recall = right / sum(image.total for image in images)
    precision = right / np.arange(1, hits.shape[1] + 1)
    # The highest precision at this or any larger recall.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.array([_sampled(recall[t], precision[t]) for t in range(len(THRESHOLDS))])


def _sampled(recall: Floats, precision: Floats) -> float:
    places = np.searchsorted(recall, RECALLS, side="left")
    reached = places < len(recall)
    return float(precision[places[reached]].sum() / len(RECALLS))
