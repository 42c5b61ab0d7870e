"""Decode the raw outputs of a YOLOv5 into boxes.

With s = sigmoid(raw), in a cell (column, row) of a level:

center = (2 s_xy - 0.5 + cell) * stride      size = (2 s_wh)^2 * anchor      score = s_objectness * s_class
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from edged.errors import ImageError
from edged.models.detections import Detections
from edged.models.nms import suppress
from edged.models.yolov5.plan import Plan
from edged.spec import DetectionSpec

MAX_CANDIDATES = 30_000  # the strongest boxes, which go into the suppression


@functools.lru_cache(maxsize=8)
def _cells(plan: Plan, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return cell [n, 2] (column, row), stride [n, 1] and anchor [n, 2] of each prediction in the order of `Detect`."""
    cells, strides, anchors = [], [], []
    for stride, level in zip(plan.strides(), plan.anchors, strict=True):
        rows, columns = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        corners = torch.stack((columns, rows), 2).float().flatten(0, 1)
        cells.append(corners.repeat_interleave(len(level), 0))
        strides.append(torch.full((len(cells[-1]), 1), float(stride)))
        anchors.append(torch.tensor(level).repeat(len(corners), 1))
    return torch.cat(cells), torch.cat(strides), torch.cat(anchors)


def decode(raw: Tensor, plan: Plan, height: int, width: int) -> Tensor:
    """Convert raw outputs to centers, sizes and probabilities.

    Args:
        raw: Raw outputs of the network [..., predictions, 5 + classes]. Not modified.
        plan: Plan of the network.
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.

    Returns:
        Tensor of the same shape, float32: x, y, width, height in pixels of the input, objectness, and a probability
        per class.

    Raises:
        ImageError: The outputs are not those of an input of this size.
    """
    cells, strides, anchors = _checked_cells(raw, plan, height, width)
    return _decoded(raw.float(), cells, strides, anchors)


def detect(raw: Tensor, plan: Plan, height: int, width: int, spec: DetectionSpec) -> Detections:
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
    limit = math.log(spec.confidence / (1 - spec.confidence)) if 0 < spec.confidence < 1 else -math.inf
    chosen = (raw[:, 4] > limit).nonzero().flatten()
    values = _decoded(raw[chosen].float(), cells[chosen], strides[chosen], anchors[chosen])
    scores = values[:, 5:] * values[:, 4:5]
    if spec.multi_label:
        rows, classes = (scores > spec.confidence).nonzero().T
        scores = scores[rows, classes]
    else:
        scores, classes = scores.max(1) if len(scores) else (scores.new_zeros(0), torch.zeros(0, dtype=torch.int64))
        rows = (scores > spec.confidence).nonzero().flatten()
        scores, classes = scores[rows], classes[rows]
    if len(scores) > MAX_CANDIDATES:
        best = scores.topk(MAX_CANDIDATES).indices
        rows, scores, classes = rows[best], scores[best], classes[best]
    centre, half = values[rows, :2], values[rows, 2:4] / 2
    boxes = torch.cat((centre - half, centre + half), 1)
    kept = suppress(boxes, scores, classes, spec.iou, spec.max_detections)
    return Detections(boxes[kept], scores[kept], classes[kept])


def _checked_cells(raw: Tensor, plan: Plan, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    cells, strides, anchors = _cells(plan, height, width)
    if raw.shape[-2:] != (len(cells), plan.outputs_per_anchor):
        expected = [len(cells), plan.outputs_per_anchor]
        raise ImageError(f"outputs {list(raw.shape[-2:])} are not those of a {width} x {height} input: {expected}")
    return cells, strides, anchors


def _decoded(raw: Tensor, cells: Tensor, strides: Tensor, anchors: Tensor) -> Tensor:
    values = raw.sigmoid()
    centre = (values[..., :2] * 2 - 0.5 + cells) * strides
    size = (values[..., 2:4] * 2).square() * anchors
    return torch.cat((centre, size, values[..., 4:]), -1)
