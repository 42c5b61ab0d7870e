"""Letterboxing: scale a whole image by one factor, center it in a gray square, and map boxes in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BORDER = 114  # the gray level that YOLOv5 is trained with


@dataclass(frozen=True)
class Letterbox:
    """The position of an image in its square.

    Attributes:
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        size: Side of the square in pixels.
    """

    width: int
    height: int
    size: int

    @property
    def inner(self) -> tuple[int, int]:
        """The width and height of the scaled image in pixels."""
        gain = self.size / max(self.width, self.height)
        return max(1, round(self.width * gain)), max(1, round(self.height * gain))

    @property
    def corner(self) -> tuple[int, int]:
        """The left and top border in pixels; an odd pixel of the border is on the right and at the bottom."""
        wide, high = self.inner
        return (self.size - wide) // 2, (self.size - high) // 2

    def to_original(self, boxes: Tensor) -> Tensor:
        """Convert boxes in the square to boxes in the image, clipped to its borders.

        Args:
            boxes: Boxes x1, y1, x2, y2 in pixels of the square [n, 4]. Not modified.

        Returns:
            Boxes x1, y1, x2, y2 in pixels of the image [n, 4].
        """
        return _clipped((boxes - self._offset(boxes)) / self._scale(boxes), self.width, self.height)

    def to_square(self, boxes: Tensor) -> Tensor:
        """Convert boxes in the image to boxes in the square.

        Args:
            boxes: Boxes x1, y1, x2, y2 in pixels of the image [n, 4]. Not modified.

        Returns:
            Boxes x1, y1, x2, y2 in pixels of the square [n, 4].
        """
        return boxes * self._scale(boxes) + self._offset(boxes)

    def _offset(self, like: Tensor) -> Tensor:
        return torch.tensor(self.corner * 2, dtype=like.dtype, device=like.device)

    def _scale(self, like: Tensor) -> Tensor:
        # Each side has its own factor, because rounding to whole pixels makes the two differ slightly.
        wide, high = self.inner
        return torch.tensor((wide / self.width, high / self.height) * 2, dtype=like.dtype, device=like.device)


def _clipped(boxes: Tensor, width: int, height: int) -> Tensor:
    limits = torch.tensor((width, height) * 2, dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp_min(0).minimum(limits)
