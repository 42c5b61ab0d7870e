"""Decode the raw outputs of a YOLOv5 into boxes. Imports no torch: detectors are served without it.

With s = sigmoid(raw), in a cell (column, row) of a level:

center = (2 s_xy - 0.5 + cell) * stride      size = (2 s_wh)^2 * anchor      score = s_objectness * s_class
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.errors import ImageError
from edged.models.detections import Detections
from edged.models.nms import suppress
from edged.models.yolov5.plan import Plan
from edged.spec import DetectionSpec

Array = npt.NDArray[Any]

MAX_CANDIDATES = 30_000  # the strongest boxes, which go into the suppression


@functools.lru_cache(maxsize=8)
def _cells(plan: Plan, height: int, width: int) -> tuple[Array, Array, Array]:
    """Return cell [n, 2] (column, row), stride [n, 1] and anchor [n, 2] of each prediction in the order of `Detect`."""
    cells, strides, anchors = [], [], []
    for stride, level in zip(plan.strides(), plan.anchors, strict=True):
        columns, rows = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        corners = np.stack((columns, rows), 2).astype(np.float32).reshape(-1, 2)
        cells.append(corners.repeat(len(level), 0))
        strides.append(np.full((len(cells[-1]), 1), stride, np.float32))
        anchors.append(np.tile(np.array(level, np.float32), (len(corners), 1)))
    return np.concatenate(cells), np.concatenate(strides), np.concatenate(anchors)


def decode(raw: Array, plan: Plan, height: int, width: int) -> Array:
    """Convert raw outputs to centers, sizes and probabilities.

    Args:
        raw: Raw outputs of the network [..., predictions, 5 + classes]. Not modified.
        plan: Plan of the network.
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.

    Returns:
        Array of the same shape, float32: x, y, width, height in pixels of the input, objectness, and a probability
        per class.

    Raises:
        ImageError: The outputs are not those of an input of this size.
    """
    cells, strides, anchors = _checked_cells(raw, plan, height, width)
    return _decoded(raw, cells, strides, anchors)


def decode_some(raw: Array, chosen: Array, plan: Plan, height: int, width: int) -> Array:
    """Convert some of the predictions for one image to centers, sizes and probabilities.

    Args:
        raw: Raw outputs for the image [predictions, 5 + classes]. Not modified.
        chosen: Indices of the predictions, int64 [n].
        plan: Plan of the network.
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.

    Returns:
        Array [n, 5 + classes], as of `decode`.

    Raises:
        ImageError: The outputs are not those of an input of this size.
    """
    cells, strides, anchors = _checked_cells(raw, plan, height, width)
    return _decoded(raw[chosen], cells[chosen], strides[chosen], anchors[chosen])


def corners_of(boxes: Array) -> Array:
    """Convert centers and sizes x, y, width, height [..., 4] to corners x1, y1, x2, y2 [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), -1)


def logit(probability: float) -> float:
    """Return the raw output with this probability, or minus infinity for a probability that is not between 0 and 1.

    Args:
        probability: The probability.
    """
    return math.log(probability / (1 - probability)) if 0 < probability < 1 else -math.inf


def detect(raw: Array, plan: Plan, height: int, width: int, spec: DetectionSpec) -> Detections:
    """Return the boxes in one image.

    Args:
        raw: Raw outputs for the image [predictions, 5 + classes]. Not modified.
        plan: Plan of the network.
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.
        spec: Rules for the predictions that become boxes.

    Returns:
        Boxes in pixels of the network's input; `Detections.in_original` converts them to pixels of the image.

    Raises:
        ImageError: The outputs are not those of an input of this size.
    """
    cells, strides, anchors = _checked_cells(raw, plan, height, width)
    # A score is at most its objectness: most predictions can be dropped before anything else is computed.
    chosen = np.flatnonzero(raw[:, 4] > logit(spec.confidence))
    values = _decoded(raw[chosen], cells[chosen], strides[chosen], anchors[chosen])
    scores = values[:, 5:] * values[:, 4:5]
    if spec.multi_label:
        rows, classes = np.nonzero(scores > spec.confidence)
    else:
        classes = scores.argmax(1) if len(scores) else np.zeros(0, np.int64)
        rows = np.flatnonzero(scores[np.arange(len(scores)), classes] > spec.confidence)
        classes = classes[rows]
    scores = scores[rows, classes]
    if len(scores) > MAX_CANDIDATES:
        best = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
        rows, scores, classes = rows[best], scores[best], classes[best]
    boxes = corners_of(values[rows, :4])
    kept = suppress(boxes, scores, classes, spec.iou, spec.max_detections)
    return Detections(boxes[kept], scores[kept], classes[kept])


def _checked_cells(raw: Array, plan: Plan, height: int, width: int) -> tuple[Array, Array, Array]:
    cells, strides, anchors = _cells(plan, height, width)
    if raw.shape[-2:] != (len(cells), plan.outputs_per_anchor):
        expected = [len(cells), plan.outputs_per_anchor]
        raise ImageError(f"outputs {list(raw.shape[-2:])} are not those of a {width} x {height} input: {expected}")
    return cells, strides, anchors


def _decoded(raw: Array, cells: Array, strides: Array, anchors: Array) -> Array:
    with np.errstate(over="ignore"):  # exp of a large number is infinity, and the sigmoid 0
        values = 1 / (1 + np.exp(-raw.astype(np.float32, copy=False)))
    centre = (values[..., :2] * 2 - 0.5 + cells) * strides
    size = np.square(values[..., 2:4] * 2) * anchors
    return np.concatenate((centre, size, values[..., 4:]), -1)
