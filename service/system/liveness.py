"""Whether every loop of the daemon still moves. Pure bookkeeping: the caller brings the clock, threads may share it.

A loop says within which time its next heartbeat is expected: its sleep, plus a patience that is the same for all. A
heartbeat that is overdue means that the loop hangs. `service.system.watchdog` feeds the service manager's watchdog only
while no heartbeat is overdue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class Loop:
    """One loop's word about itself. Use it as a context: its promises end with it, however long it lived.

    A loop that ends by an error other than its cancellation stays on the list as overdue: nobody does its work now.
    """

    def __init__(self, owner: Liveness, name: str) -> None:
        self.name = name
        self.due = math.inf  # it has promised nothing yet
        self._owner = owner

    def heartbeat(self) -> None:
        """It begins with something that takes no longer than the patience."""
        self.expect_within(0.0)

    def expect_within(self, at_most_s: float | None) -> None:
        """Its next word comes within `at_most_s` seconds; None if it waits for an event that may never come."""
        self.due = math.inf if at_most_s is None else self._owner.promise(at_most_s)

    def __enter__(self) -> Loop:
        self._owner.loops[self.name] = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.due = -math.inf
        elif self._owner.loops.get(self.name) is self:  # another of the same name may have taken over
            del self._owner.loops[self.name]


class Liveness:
    """All loops that are there now.

    Args:
        patience_s: Seconds that a loop may be late; infinite when nobody watches.
        clock: Monotonic seconds.

    Attributes:
        loops: By name; for Loop alone.
    """

    def __init__(self, patience_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience_s = patience_s
        self.loops: dict[str, Loop] = {}
        self._clock = clock

    def loop(self, name: str) -> Loop:
        """A loop, for a `with` around its whole life. The next one of the same name takes its place."""
        return Loop(self, name)

    @contextmanager
    def bounded(self, name: str, at_most_s: float = 0.0) -> Iterator[None]:
        """A single piece of work that must end by itself within `at_most_s` seconds, well or not."""
        piece = Loop(self, name)
        piece.expect_within(at_most_s)
        key = f"{name} {id(piece)}"  # several of one name may be under way
        self.loops[key] = piece
        try:
            yield
        finally:
            del self.loops[key]

    def promise(self, at_most_s: float) -> float:
        """When something that is to come within `at_most_s` seconds is overdue, by the clock."""
        return self._clock() + at_most_s + self.patience_s

    def overdue(self) -> list[str]:
        """Names of the loops that hang or have ended by an error, sorted."""
        now = self._clock()
        return sorted({loop.name for loop in list(self.loops.values()) if loop.due < now})
