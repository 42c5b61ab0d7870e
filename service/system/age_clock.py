"""The time by which ages are judged, for what is deleted once it is too old."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_TOLERANCE_S = 3600.0  # clocks are set, and drift
_BELIEVED_AFTER_S = 86400.0


class AgeClock:
    """A clock that follows the wall clock, but believes a jump forward only after it has lasted a day.

    A wrong clock (an empty battery, a wrong time server) must not delete years of history and files in its first
    minute. Until then, the time goes on from where it was; what expired meanwhile is deleted a day later. A clock that
    is set back makes everything younger, which deletes nothing.

    Args:
        last: Last time that is known from before the start, in seconds since 1970; None if none is.
        wall: Function that returns the seconds since 1970.
        steady: Function that returns monotonic seconds.
    """

    def __init__(
        self,
        last: float | None = None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._base, self._base_steady = wall() if last is None else last, steady()
        self._jumped_at: float | None = None  # monotonic

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        with self._lock:
            wall, steady = self._wall(), self._steady()
            expected = self._base + steady - self._base_steady
            if wall <= expected + _TOLERANCE_S:
                self._jumped_at = None
            elif self._jumped_at is None:
                self._jumped_at = steady
            if self._jumped_at is None or steady - self._jumped_at >= _BELIEVED_AFTER_S:
                self._base, self._base_steady, self._jumped_at = wall, steady, None
                return wall
            return expected
