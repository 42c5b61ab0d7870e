"""Non-maximum suppression, class by class, with or without torchvision's compiled operators."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from edged.models.torchvision_shim import compiled_operators_load


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float, limit: int) -> Tensor:
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
    order = torch.sort(scores, descending=True, stable=True).indices
    ranked, kinds = boxes[order], classes[order]
    kept = _with_torchvision(ranked, kinds, iou) if _has_operators() else _greedily(ranked, kinds, iou, limit)
    return order[kept[:limit]]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union [n, m] of boxes x1, y1, x2, y2 [n, 4] and [m, 4]; 0 for boxes without area."""
    corner = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    shared = corner.clamp_min(0).prod(2)
    return (shared / (_area(a)[:, None] + _area(b)[None] - shared)).nan_to_num(0.0)


def _greedily(boxes: Tensor, classes: Tensor, iou: float, limit: int) -> Tensor:
    """Return the ranks of the boxes that are kept. Stops at `limit`, since boxes are sorted by descending score."""
    kept: list[int] = []
    left = torch.arange(len(boxes))
    while len(left) and len(kept) < limit:
        best, left = left[0], left[1:]
        kept.append(int(best))
        overlaps = pairwise_iou(boxes[best][None], boxes[left])[0] > iou
        left = left[~(overlaps & (classes[left] == classes[best]))]
    return torch.tensor(kept, dtype=torch.int64)


def _with_torchvision(boxes: Tensor, classes: Tensor, iou: float) -> Tensor:
    nms = torch.ops.torchvision.nms
    falling = torch.arange(len(boxes), 0, -1, dtype=torch.float32)  # the rank as a score: ties are already broken
    kept = []
    for kind in set(classes.tolist()):
        members = (classes == kind).nonzero().flatten()
        kept.append(members[nms(boxes[members], falling[members], iou)])
    return torch.cat(kept).sort().values if kept else torch.zeros(0, dtype=torch.int64)


@functools.cache
def _has_operators() -> bool:
    return compiled_operators_load()


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
