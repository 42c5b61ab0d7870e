"""Non-maximum suppression, class by class. Imports no torch: detectors are served without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def suppress(boxes: Array, scores: Array, classes: Array, iou: float, limit: int) -> Array:
    """Return the boxes that no stronger box of the same class overlaps by more than `iou`.

    Args:
        boxes: Corners x1, y1, x2, y2, float32 [n, 4].
        scores: Scores of the boxes, float32 [n].
        classes: Class indices of the boxes, int64 [n].
        iou: Largest overlap allowed, intersection over union.
        limit: Most boxes to keep.

    Returns:
        Indices of the boxes by descending score, int64 [at most limit]; equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, kinds = boxes[order], classes[order]
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < limit:
        best, left = left[0], left[1:]
        kept.append(int(best))
        overlaps = pairwise_iou(ranked[best][None], ranked[left])[0] > iou
        left = left[~(overlaps & (kinds[left] == kinds[best]))]
    return order[np.array(kept, np.int64)]


def pairwise_iou(a: Array, b: Array) -> Array:
    """Return the intersection over union [n, m] of boxes x1, y1, x2, y2 [n, 4] and [m, 4]; 0 for boxes without area."""
    return iou_of(a[:, None], b[None])


def iou_of(a: Array, b: Array) -> Array:
    """Return the intersection over union of boxes x1, y1, x2, y2 [..., 4], broadcast; 0 for boxes without area."""
    corner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = corner.clip(0).prod(-1)
    union = _area(a) + _area(b) - shared
    result: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union != 0)
    return result


def _area(boxes: Array) -> Array:
    area: Array = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return area
