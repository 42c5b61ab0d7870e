"""The boxes that a detector finds in an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edged.calibration.letterbox import Letterbox
from edged.models.nms import pairwise_iou

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Detections:
    """Boxes of one image by descending score.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels, float32 [n, 4].
        scores: Scores from 0 to 1, float32 [n].
        classes: Class indices, int64 [n].
    """

    boxes: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating]
    classes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def in_original(self, letterbox: Letterbox) -> Detections:
        """Return the same boxes in pixels of the image before it was letterboxed, clipped at its borders."""
        return Detections(letterbox.to_original(self.boxes), self.scores, self.classes)


def shared_boxes(reference: Detections, found: Detections) -> int:
    """Count the boxes that two detectors have in common in one image, see `edged.evaluation.detection.agreement`."""
    overlaps = pairwise_iou(reference.boxes, found.boxes)
    overlaps = np.where(reference.classes[:, None] == found.classes[None], overlaps, 0)
    pairs = 0
    for row in range(len(reference) if len(found) else 0):
        column = overlaps[row].argmax()
        if overlaps[row, column] >= MATCH_IOU:
            pairs += 1
            overlaps[:, column] = 0
    return pairs
