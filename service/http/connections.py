"""The open connections of one server: how many there may be, which is closed first, and what is overdue.

There is one timer for all connections. It fires once a second while a request is arriving, otherwise when the oldest
idle connection expires, and not at all without connections.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Protocol

from service.config.sections import ServeConfig
from service.http.refusals import Refusals

SPARES = 16  # connections beyond the limit, on which only GET requests are answered
IDLE_S = 75.0
_CHECK_S = 1.0  # the precision of deadlines
_HURRY_S = 0.5  # in which a body may arrive at any rate, though others wait for memory
_HONEST_HEAD_S = 1.0  # an unfinished head is older than that on a connection that may be closed to make room


class Connection(Protocol):
    """What a connection can be asked for."""

    def close_idle(self) -> None:
        """Close the connection, which has no request in progress."""

    def refuse_head(self) -> None:
        """Refuse the unfinished head of a request as too slow, and close the connection."""

    def why_overdue(self, now: float, hurry_s: float | None) -> str | None:
        """Return the reason why the body that is arriving is too slow; None if it is not.

        Args:
            now: The time, by time.monotonic().
            hurry_s: Seconds that it may take, if others wait for memory; None if none do.
        """

    def refuse_body(self, reason: str) -> None:
        """Refuse the unfinished body of a request as too slow, and close the connection."""

    def has_unsent(self) -> bool:
        """Return whether the client has not read all of its response yet."""


class Connections:
    """The connections of one server.

    Args:
        limit: Number of connections from which on others are closed to accept new ones.
        serve: Returns the section of the configuration in force.
        refusals: Counts what is refused.
        is_short: Returns whether bodies wait for memory, so that slower ones have to go.
    """

    def __init__(
        self, limit: int, serve: Callable[[], ServeConfig], refusals: Refusals, is_short: Callable[[], bool]
    ) -> None:
        self.limit = limit
        self.refusals = refusals
        self._serve = serve
        self._is_short = is_short
        self._open: set[Connection] = set()
        # Connection -> since when, oldest first. An open connection is in at most one of these; in none while its
        # request is answered.
        self._silent: dict[Connection, float] = {}  # no request yet
        self._idle: dict[Connection, float] = {}  # between two requests
        self._heads: dict[Connection, float] = {}
        self._bodies: dict[Connection, float] = {}
        self._spares: dict[Connection, None] = {}  # oldest first
        self._asked: set[Connection] = set()  # that have sent a whole request
        self._timer: asyncio.TimerHandle | None = None
        self._is_ticking = False  # whether the timer is set for what arrives

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    @property
    def serve(self) -> ServeConfig:
        """The section of the configuration in force."""
        return self._serve()

    @property
    def is_short(self) -> bool:
        """Whether bodies wait for memory."""
        return self._is_short()

    def opened(self, connection: Connection) -> bool:
        """Add a new connection.

        Returns:
            Whether the connection is a spare one: the limit is reached, and no other could be closed.
        """
        spare = len(self._open) - len(self._spares) >= self.limit and not self.make_room()
        if spare and len(self._spares) >= SPARES:
            oldest = next(iter(self._spares))
            self.closed(oldest)
            oldest.close_idle()
            self.refusals.note("connections")
        self._open.add(connection)
        if spare:
            self._spares[connection] = None
            self._heads[connection] = time.monotonic()
            self._schedule()
        else:
            self.rests(connection)
        return spare

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.ends(connection)
        self._open.discard(connection)
        self._asked.discard(connection)
        self._spares.pop(connection, None)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer, self._is_ticking = None, False

    def ends(self, connection: Connection) -> None:
        """Note that a connection gets no more requests; it counts until it is closed."""
        for group in (self._silent, self._idle, self._heads, self._bodies):
            group.pop(connection, None)

    def head_began(self, connection: Connection) -> None:
        """Note that the first bytes of a request have arrived."""
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)
        self._heads.setdefault(connection, time.monotonic())
        if not self._is_ticking:
            self._schedule()

    def body_began(self, connection: Connection) -> None:
        """Note that the head of a request is complete."""
        self._heads.pop(connection, None)
        self._bodies[connection] = time.monotonic()

    def arrived(self, connection: Connection) -> None:
        """Note that a request is complete."""
        self._asked.add(connection)
        self._heads.pop(connection, None)
        self._bodies.pop(connection, None)

    def rests(self, connection: Connection) -> None:
        """Note that a connection waits for its next request."""
        if connection in self._open:
            group = self._idle if connection in self._asked else self._silent
            group[connection] = time.monotonic()
            if self._timer is None:
                self._schedule()

    def make_room(self) -> bool:
        """Close the connection that is idle for the longest time, or else the one with the oldest unfinished head.

        Of idle ones, those that have never sent a request go first: the others belong to clients that may be about to
        send the next one.

        Returns:
            Whether there was one.
        """
        waiting = itertools.chain(self._silent, self._idle)
        idle = next((connection for connection in waiting if not connection.has_unsent()), None)
        if idle is not None:
            self.closed(idle)
            idle.close_idle()
            self.refusals.note("idle")
            return True
        head, since = next(iter(self._heads.items()), (None, 0.0))
        if head is not None and time.monotonic() - since >= min(_HONEST_HEAD_S, self.serve.head_timeout_s):
            self._refuse_head(head)
            return True
        return False

    def _refuse_head(self, connection: Connection) -> None:
        self.ends(connection)
        connection.refuse_head()
        self.refusals.note("slow_head")

    def _schedule(self) -> None:
        """Set the timer for the next deadline, unless it fires earlier anyway."""
        self._is_ticking = bool(self._heads or self._bodies)
        if self._is_ticking:
            at = time.monotonic() + min(_CHECK_S, self.serve.head_timeout_s / 4, self.serve.body_timeout_s / 4)
        elif self._silent or self._idle:
            at = min(next(iter(group.values())) for group in (self._silent, self._idle) if group) + IDLE_S
        else:
            return
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._check)

    def _check(self) -> None:
        """Close all connections that are overdue."""
        self._timer = None
        now, serve = time.monotonic(), self.serve
        for connection in _older(self._heads, now - serve.head_timeout_s):
            self._refuse_head(connection)
        hurry_s = _HURRY_S if self._is_short() else None
        allowed_s = serve.body_timeout_s if hurry_s is None else min(hurry_s, serve.body_timeout_s)
        for connection in _older(self._bodies, now - allowed_s):
            if (reason := connection.why_overdue(now, hurry_s)) is not None:
                self.ends(connection)
                connection.refuse_body(reason)
                self.refusals.note("slow_body")
        for connection in [*_older(self._silent, now - IDLE_S), *_older(self._idle, now - IDLE_S)]:
            self.closed(connection)
            if connection.has_unsent():
                self.refusals.note("slow_reader")
            connection.close_idle()
        self._schedule()


def _older(group: dict[Connection, float], limit: float) -> list[Connection]:
    """Return the connections that were added before `limit`, by time.monotonic()."""
    found = []
    for connection, since in group.items():
        if since > limit:  # those after it are younger
            break
        found.append(connection)
    return found
