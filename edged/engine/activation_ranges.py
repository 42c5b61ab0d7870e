"""Ranges of activations, measured while a network is quantized layer by layer.

The full-precision stream shows each value's histogram before the quantized stream gets there. From then on the
quantized stream carries the value rounded to its grid, so that the layers after it correct that error, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edged.errors import CalibrationError
from edged.execution.grids import ActivationGrid
from edged.execution.histogram import Histogram
from edged.execution.placement import Placement
from edged.execution.ranges import RangePolicy, choose_range

# Counting takes as long as a small convolution, and more values hardly move a range. All values count for the extremes.
COUNTED_IMAGES = 128
COUNTED_SIDE = 32  # rows and columns of a map


class ActivationRanges:
    """Histograms and grids of the values of a network that are carried as codes.

    Args:
        placement: The values that are carried as codes.
        bits: Bits per code.
        policies: How to choose the range of each of `placement.values`, by name.

    Attributes:
        histograms: Histogram of each value that was observed, by name.
        grids: Grid of each value that was decided, by name.
        bits: Bits per code.
        policies: Policy of each value, by name.
    """

    def __init__(self, placement: Placement, bits: int, policies: Mapping[str, RangePolicy]) -> None:
        self.histograms: dict[str, Histogram] = {}
        self.grids: dict[str, ActivationGrid] = {}
        self.bits, self.policies = bits, dict(policies)
        # Only names: the placement holds a copy of all weights.
        self._wanted, self._owners = frozenset(placement.values), dict(placement.owners)
        self._images: dict[str, int] = {}

    def observe(self, name: str, value: Tensor) -> Tensor:
        """Add a batch of a full-precision value to its histogram unless its grid is decided, and return the value.

        Args:
            name: Name of the value.
            value: The batch [images, ...]. Not modified.

        Raises:
            CalibrationError: The value is not finite.
        """
        if name in self._wanted and name not in self.grids:
            try:
                self._count(name, value)
            except CalibrationError as error:
                raise CalibrationError(f"value {name!r} of the network: {error}") from None
        return value

    def _count(self, name: str, value: Tensor) -> None:
        histogram = self.histograms.setdefault(name, Histogram())
        seen = self._images.get(name, 0)
        counted = min(len(value), max(0, COUNTED_IMAGES - seen))
        if counted:
            histogram.update(_spread(value[:counted]))
        histogram.extend(value)
        self._images[name] = seen + len(value)

    def decide(self) -> None:
        """Choose the grids of all values that were observed and have none."""
        for name in self.histograms.keys() - self.grids.keys():
            ends = choose_range(self.histograms[name], self.policies[name], self.bits)
            self.grids[name] = ActivationGrid.spanning(*ends, bits=self.bits)

    def grid_of(self, name: str) -> ActivationGrid | None:
        """Return the grid that a value of the quantized stream is on; None if it is on none, or none is decided yet."""
        return self.grids.get(self._owners.get(name, ""))

    def rounded(self, name: str, value: Tensor) -> Tensor:
        """Return a value of the quantized stream as an engine carries it: on its grid, if it has one.

        Values that max-pooling and enlargement pass on are on their grid already.
        """
        grid = self.grids.get(name)
        return value if grid is None else grid.nearest(value)


def _spread(value: Tensor) -> Tensor:
    """Return the values at evenly spaced positions of maps [images, channels, height, width]; others as they are."""
    if value.dim() != 4:
        return value
    row, column = (-(-side // COUNTED_SIDE) for side in value.shape[2:])
    return value[:, :, ::row, ::column]
