"""Memory use of a process over time in a bounded number of points. Pure: the caller passes the time."""

from __future__ import annotations

MAX_POINTS = 240  # about what a chart can show


class MemoryTrace:
    """A trace of memory use that keeps the peaks: at the limit, each pair of points is merged into the larger one.

    Args:
        limit: Largest number of points; even, at least 2.
    """

    def __init__(self, limit: int = MAX_POINTS) -> None:
        self._limit = limit
        self._points: list[tuple[float, int]] = []
        self._samples_each = 1
        self._in_last = 0

    def add(self, at_s: float, used: int) -> None:
        """Add a sample.

        Args:
            at_s: Seconds since the start, not less than those of the previous sample.
            used: Memory in use, in bytes.
        """
        if self._points and self._in_last < self._samples_each:
            self._points[-1] = max(self._points[-1], (at_s, used), key=lambda point: point[1])
            self._in_last += 1
            return
        if len(self._points) == self._limit:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [max(pair, key=lambda point: point[1]) for pair in pairs]
            self._samples_each *= 2
        self._points.append((at_s, used))
        self._in_last = 1

    @property
    def points(self) -> list[tuple[float, int]]:
        """Points as (seconds, bytes), the oldest first."""
        return [(round(at_s, 2), used) for at_s, used in self._points]
