"""The boxes that a detector finds in an image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edged.calibration.letterbox import Letterbox


@dataclass(frozen=True)
class Detections:
    """Boxes of one image by descending score.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels, float32 [n, 4].
        scores: Scores from 0 to 1, float32 [n].
        classes: Class indices, int64 [n].
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def in_original(self, letterbox: Letterbox) -> Detections:
        """Return the same boxes in pixels of the image before it was letterboxed, clipped at its borders."""
        return Detections(letterbox.to_original(self.boxes), self.scores, self.classes)
