"""What the HTTP server refuses, to stay within its bounds or to be safe: counted, and logged at most once a minute."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
GATHER_S = 1.0  # from the first event to its line, so that the line counts the whole of a burst
# Reason -> what it means for the log, of one and of several. The reasons are label values of edged_http_refused_total.
REASONS = {
    "connections": ("request", "requests", "over serve.max_connections"),
    "idle": ("idle connection", "idle connections", "closed to make room"),
    "descriptors": ("wait", "waits", "for free file descriptors"),
    "slow_head": ("request head", "request heads", "not complete in time"),
    "large_head": ("request head", "request heads", "too large"),
    "slow_body": ("request body", "request bodies", "too slow"),
    "slow_reader": ("client", "clients", "that did not read their response"),
    "body_memory": ("body", "bodies", "without room within serve.max_arriving_bytes"),
    "host": ("request", "requests", "for a host that serve.hosts does not allow"),
    "origin": ("request", "requests", "from pages of another site"),
    "token": ("wrong token", "wrong tokens", "from an address that sends many, or from many addresses"),
}


def _call_later(delay_s: float, call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(delay_s, call)


class Refusals:
    """Counts what is refused.

    Args:
        count: Called with the reason of each refusal.
        clock: Returns monotonic seconds.
        call_later: Calls a function after some seconds.
    """

    def __init__(
        self,
        count: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], None] = _call_later,
    ) -> None:
        self._count = count
        self._clock = clock
        self._call_later = call_later
        self._unlogged: Counter[str] = Counter()
        self._logged_at = -LOG_EVERY_S

    def note(self, reason: str) -> None:
        """Count a refusal for one of `REASONS`."""
        self._count(reason)
        if not self._unlogged:  # otherwise the line is due already
            self._call_later(max(GATHER_S, self._logged_at + LOG_EVERY_S - self._clock()), self._log)
        self._unlogged[reason] += 1

    def _log(self) -> None:
        counted = ", ".join(_described(reason, count) for reason, count in self._unlogged.items())
        self._unlogged.clear()
        self._logged_at = self._clock()
        log.warning("the HTTP server limits its clients: %s; see edged_http_refused_total", counted)


def _described(reason: str, count: int) -> str:
    one, several, what = REASONS[reason]
    return f"{count} {one if count == 1 else several} {what}"
