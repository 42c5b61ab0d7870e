"""Ranges of activations: the least and the greatest value that get a code of their own.

Values outside are clipped. A narrow range rounds finely and clips much; each policy weighs the two in its own way, on a
histogram of the values.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from edged.execution.grids import ActivationGrid, Range
from edged.execution.histogram import Histogram

PERCENTILE = 0.9999
GRID_POINTS = 9
TOLERANCE = 1e-3
_GOLDEN = (math.sqrt(5) - 1) / 2
_LEAST_FACTOR = 0.02


class RangePolicy(str, enum.Enum):
    """The choice of an activation's range."""

    MINMAX = "minmax"  # every calibration value
    PERCENTILE = "percentile"  # all but one value in ten thousand at each end
    MSE = "mse"  # least squared error, by golden-section search over one factor (arXiv 2510.04044)
    SILU = "silu"  # least squared error after the SiLU that reads the value, by a search of each end


def choose_range(histogram: Histogram, policy: RangePolicy, bits: int = 8) -> Range:
    """Choose the range of an activation.

    Args:
        histogram: Its values.
        policy: How to weigh rounding against clipping.
        bits: Bits per code.

    Returns:
        The least value, <= 0, and the greatest value, >= 0.
    """
    low, high = histogram.low, histogram.high
    if policy is RangePolicy.MINMAX or low == high:
        return low, high
    middles, counts = histogram.bins()
    if policy is RangePolicy.PERCENTILE:
        return _percentiles(middles, counts, low, high)
    if policy is RangePolicy.MSE:
        factor = golden_section(lambda a: _error(middles, counts, (a * low, a * high), bits), _LEAST_FACTOR, 1.0)
        return factor * low, factor * high
    return _silu_range(middles, counts, (low, high), bits)


def golden_section(error: Callable[[float], float], least: float, most: float) -> float:
    """Search for the minimum of a function of one variable (arXiv 2510.04044, section 3).

    Nine points find the bracket. Inside, golden sections narrow it to a thousandth of the interval. Where the function
    has several minima the sections may end at a worse one than a point of the bracket search; the best of all points
    that were tried is returned.

    Args:
        error: The function.
        least: Lower end of the interval.
        most: Upper end of the interval.
    """
    step = (most - least) / (GRID_POINTS - 1)
    tried = {least + i * step: error(least + i * step) for i in range(GRID_POINTS)}
    middle = min(tried, key=tried.__getitem__)
    left, right = max(least, middle - step), min(most, middle + step)
    while right - left > TOLERANCE * (most - least):
        inner = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        for point in inner:
            if point not in tried:
                tried[point] = error(point)
        if tried[inner[0]] <= tried[inner[1]]:
            right = inner[1]
        else:
            left = inner[0]
    return min(tried, key=tried.__getitem__)


def _percentiles(middles: Tensor, counts: Tensor, low: float, high: float) -> Range:
    below = counts.cumsum(0) / counts.sum()
    first = int((below < 1 - PERCENTILE).sum())
    last = int((below < PERCENTILE).sum())
    return max(low, min(float(middles[first]), 0.0)), min(high, max(float(middles[last]), 0.0))


def _error(middles: Tensor, counts: Tensor, ends: Range, bits: int) -> float:
    """Return the sum over bins n_i (c_i - Q(c_i))^2 for the grid over a range."""
    rounded = ActivationGrid.spanning(*ends, bits=bits).nearest(middles.clone())
    return float((counts * (middles - rounded).square()).sum())


def _silu_range(middles: Tensor, counts: Tensor, ends: Range, bits: int) -> Range:
    """Choose the ends by the error after the SiLU: far below zero it is flat, so such values need no codes."""
    wanted = functional.silu(middles)

    def error(low: float, high: float) -> float:
        rounded = ActivationGrid.spanning(low, high, bits=bits).nearest(middles.clone())
        return float((counts * (wanted - functional.silu(rounded)).square()).sum())

    low, high = ends
    for _ in range(2):  # the two ends share one scale, so each is searched again with the other in place
        low = ends[0] * golden_section(lambda a: error(a * ends[0], high), 0.0, 1.0) if ends[0] < 0 else low  # noqa: B023
        high = ends[1] * golden_section(lambda a: error(low, a * ends[1]), _LEAST_FACTOR, 1.0) if ends[1] > 0 else high  # noqa: B023
    return low, high
