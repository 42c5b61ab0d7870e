"""Heartbeats of the daemon's loops. Pure bookkeeping: the clock is passed in, and threads may share it.

A loop states within which time its next heartbeat is expected: its sleep, plus a patience that is the same for all. A
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
    """The heartbeat of one loop, used as a context manager: its deadline ends with the block.

    A loop that ends with an error other than its cancellation stays registered as overdue, because its work is not done
    any more.
    """

    def __init__(self, owner: Liveness, name: str) -> None:
        self.name = name
        self.due = math.inf  # no deadline yet
        self._owner = owner

    def heartbeat(self) -> None:
        """Report progress; the next heartbeat is due within the patience."""
        self.expect_within(0.0)

    def expect_within(self, at_most_s: float | None) -> None:
        """Report progress and expect the next heartbeat within `at_most_s` seconds.

        None sets no deadline, for a wait for an event that may never come.
        """
        self.due = math.inf if at_most_s is None else self._owner.deadline(at_most_s)

    def __enter__(self) -> Loop:
        self._owner.loops[self.name] = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.due = -math.inf
        elif self._owner.loops.get(self.name) is self:  # a later loop of the same name may have replaced it
            del self._owner.loops[self.name]


class Liveness:
    """The registry of all running loops.

    Args:
        patience_s: Seconds that a loop may be late; infinite without a watchdog.
        clock: Monotonic seconds.

    Attributes:
        loops: Running loops by name; only Loop changes them.
    """

    def __init__(self, patience_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience_s = patience_s
        self.loops: dict[str, Loop] = {}
        self._clock = clock

    def loop(self, name: str) -> Loop:
        """Return a loop for a `with` block around its whole life. A later loop of the same name replaces it."""
        return Loop(self, name)

    @contextmanager
    def bounded(self, name: str, at_most_s: float = 0.0) -> Iterator[None]:
        """Expect the work in the block to end within `at_most_s` seconds, successfully or not."""
        piece = Loop(self, name)
        piece.expect_within(at_most_s)
        key = f"{name} {id(piece)}"  # several of the same name may be running
        self.loops[key] = piece
        try:
            yield
        finally:
            del self.loops[key]

    def deadline(self, at_most_s: float) -> float:
        """Return the time, by the clock, after which something expected within `at_most_s` seconds is overdue."""
        return self._clock() + at_most_s + self.patience_s

    def overdue(self) -> list[str]:
        """Return the sorted names of the loops that hang or have ended with an error."""
        now = self._clock()
        return sorted({loop.name for loop in list(self.loops.values()) if loop.due < now})
