"""Since when updates wait for their turn, and since when they are worked on."""

from __future__ import annotations

import time
from collections.abc import Callable


class Turns:
    """The turns of all updates that have not ended and are not deferred.

    Args:
        clock: Function that returns the time in seconds since 1970.
        steady: Function that returns monotonic seconds: the clock may be set while an update waits.

    Attributes:
        waiting: When the wait of an update for its turn began, in seconds since 1970, by update id.
        working: When the work on an update began, in seconds since 1970, by update id.
    """

    def __init__(self, clock: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._steady = clock, steady
        self._since: dict[int, float] = {}  # monotonic, of those that wait
        self.waiting: dict[int, float] = {}
        self.working: dict[int, float] = {}

    def wait(self, update_id: int, since: float | None = None) -> None:
        """Note that an update waits for its turn, from now on or since an earlier time, unless it waits already."""
        self.working.pop(update_id, None)
        if update_id not in self.waiting:
            now = self._clock()
            self.waiting[update_id] = now if since is None else since
            self._since[update_id] = self._steady() - (0.0 if since is None else max(0.0, now - since))

    def begin(self, update_id: int) -> float:
        """Note that the work on an update begins; returns the seconds that it has waited."""
        self.working.setdefault(update_id, self._clock())
        self.waiting.pop(update_id, None)
        now = self._steady()
        return now - self._since.pop(update_id, now)

    def end(self, update_id: int) -> None:
        """Note that an update has ended or is deferred."""
        self.waiting.pop(update_id, None)
        self.working.pop(update_id, None)
        self._since.pop(update_id, None)
