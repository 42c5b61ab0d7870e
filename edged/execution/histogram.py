"""Histograms of activations that grow with their range and not with the number of values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edged.errors import CalibrationError

BINS = 4096
_LEAST_EXPONENT = -100  # smaller values are all in the bins around zero; 2**100 is a float32, too


class Histogram:
    """Counts of values in bins of equal width, anchored at zero: bin i covers [i width, (i + 1) width).

    The width is a power of two. When a value falls outside, neighboring bins are joined and the width doubles, so the
    counts are the same however the values are divided into batches.

    Attributes:
        low: Least value so far; 0 before the first one.
        high: Greatest value so far; 0 before the first one.
        count: Number of counted values.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.count = 0
        self._exponent: int | None = None  # the width is 2**exponent
        self._counts = torch.zeros(BINS, dtype=torch.int64)

    def extend(self, x: Tensor) -> None:
        """Include values in `low` and `high` only, which takes a tenth of the time of `update`.

        Args:
            x: Values of any shape. Not modified.

        Raises:
            CalibrationError: A value is infinite or not a number.
        """
        # torch.aminmax takes 100 times as long on maps in channels-last layout.
        low, high = float(x.amin()), float(x.amax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError("an activation is not finite because values overflow; check the checkpoint")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def update(self, x: Tensor) -> None:
        """Count values.

        Args:
            x: Values of any shape. Not modified.

        Raises:
            CalibrationError: A value is infinite or not a number.
        """
        self.extend(x)
        if (largest := max(-self.low, self.high)) > 0:
            # The least power of two for which every value's bin is one of the 4096.
            self._widen(max(math.frexp(largest)[1] - int(math.log2(BINS // 2)), _LEAST_EXPONENT))
        self.count += x.numel()
        if self._exponent is None:  # only zeros so far
            return
        bins = x.mul(2.0**-self._exponent).floor_().add_(BINS // 2).flatten().int().cpu()
        self._counts += torch.bincount(bins.clamp_(0, BINS - 1), minlength=BINS)

    def bins(self) -> tuple[Tensor, Tensor]:
        """Return the middle of each bin that holds values, float64 [n] ascending, and its count, float64 [n]."""
        if self._exponent is None:
            return torch.zeros(1, dtype=torch.float64), torch.tensor([float(self.count)], dtype=torch.float64)
        width = 2.0**self._exponent
        middles = (torch.arange(BINS, dtype=torch.float64) - BINS // 2 + 0.5) * width
        held = self._counts > 0
        return middles[held].clamp(self.low, self.high), self._counts[held].double()

    def _widen(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
            # Values counted before were all zero.
            self._counts[BINS // 2] = self.count
            return
        while self._exponent < exponent:
            half = self._counts.view(-1, 2).sum(1)
            self._counts = torch.zeros_like(self._counts)
            self._counts[BINS // 4 : BINS // 4 + BINS // 2] = half
            self._exponent += 1
