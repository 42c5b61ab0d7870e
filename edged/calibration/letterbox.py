"""Letterboxing: scale a whole image by one factor, center it in a gray square, and map boxes in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.floating]

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

    def to_original(self, boxes: Boxes) -> Boxes:
        """Convert boxes in the square to boxes in the image, clipped to its borders.

        Args:
            boxes: Boxes x1, y1, x2, y2 in pixels of the square [n, 4]. Not modified.

        Returns:
            Boxes x1, y1, x2, y2 in pixels of the image [n, 4].
        """
        limits = np.array((self.width, self.height) * 2, boxes.dtype)
        return ((boxes - self._offset(boxes)) / self._scale(boxes)).clip(0, limits)

    def to_square(self, boxes: Boxes) -> Boxes:
        """Convert boxes in the image to boxes in the square.

        Args:
            boxes: Boxes x1, y1, x2, y2 in pixels of the image [n, 4]. Not modified.

        Returns:
            Boxes x1, y1, x2, y2 in pixels of the square [n, 4].
        """
        converted: Boxes = boxes * self._scale(boxes) + self._offset(boxes)
        return converted

    def _offset(self, like: Boxes) -> Boxes:
        return np.array(self.corner * 2, like.dtype)

    def _scale(self, like: Boxes) -> Boxes:
        # Each side has its own factor, because rounding to whole pixels makes the two differ slightly.
        wide, high = self.inner
        return np.array((wide / self.width, high / self.height) * 2, like.dtype)
