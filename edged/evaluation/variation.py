"""Whether the outputs of a network depend on its images: those of a zeroed or collapsed network do not."""

from __future__ import annotations

from torch import Tensor


class Variation:
    """How far outputs move from image to image, a batch at a time.

    Attributes:
        images: Number of images so far.
        spread: Largest difference of an output from that of the first image.
        magnitude: Largest absolute output.
    """

    def __init__(self) -> None:
        self.images = 0
        self.spread = 0.0
        self.magnitude = 0.0
        self._first: Tensor | None = None

    def add(self, outputs: Tensor) -> Variation:
        """Count the outputs of further images.

        Args:
            outputs: Finite logits or raw outputs [n, ...]. Not modified.
        """
        if self._first is None:
            self._first = outputs[:1].clone()
        self.images += len(outputs)
        for each in outputs:  # one by one, because the outputs of a detector take 9 MB per image
            self.spread = max(self.spread, float((each - self._first[0]).abs().max()))
            self.magnitude = max(self.magnitude, float(each.abs().max()))
        return self

    @property
    def relative(self) -> float | None:
        """The spread relative to the magnitude, 0 for outputs that are all zero; None for a single image."""
        if self.images < 2:
            return None
        return self.spread / self.magnitude if self.magnitude else 0.0
