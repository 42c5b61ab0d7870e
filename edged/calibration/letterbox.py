"""Fitting a whole image into a square: scaled by one factor, centred, grey around it. And the way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BORDER = 114  # the grey that YOLOv5 is trained with


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies in its square.

    Attributes:
        width: Of the image as it is upright, pixels.
        height: Likewise.
        size: Side of the square, pixels.
    """

    width: int
    height: int
    size: int

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height of the scaled image, pixels."""
        gain = self.size / max(self.width, self.height)
        return max(1, round(self.width * gain)), max(1, round(self.height * gain))

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top border, pixels; the border's odd pixel goes to the right and the bottom."""
        wide, high = self.inner
        return (self.size - wide) // 2, (self.size - high) // 2

    def to_original(self, boxes: Tensor) -> Tensor:
        """Boxes in the square to boxes in the image, cut off at its borders.

        Args:
            boxes: x1, y1, x2, y2 in pixels of the square [n, 4]. Not modified.
        """
        return _clipped((boxes - self._offset(boxes)) / self._scale(boxes), self.width, self.height)

    def to_square(self, boxes: Tensor) -> Tensor:
        """Boxes x1, y1, x2, y2 in pixels of the image [n, 4] to boxes in pixels of the square."""
        return boxes * self._scale(boxes) + self._offset(boxes)

    def _offset(self, like: Tensor) -> Tensor:
        return torch.tensor(self.corner * 2, dtype=like.dtype, device=like.device)

    def _scale(self, like: Tensor) -> Tensor:
        # Each side by itself: rounding to whole pixels makes the two factors differ a little.
        wide, high = self.inner
        return torch.tensor((wide / self.width, high / self.height) * 2, dtype=like.dtype, device=like.device)


def _clipped(boxes: Tensor, width: int, height: int) -> Tensor:
    limits = torch.tensor((width, height) * 2, dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp_min(0).minimum(limits)
