"""What the HTTP server refuses to stay within its bounds: counted by reason, and logged at most once a minute."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
# Reason -> what it means, for the log. The reasons are label values of edged_http_refused_total.
REASONS = {
    "connections": "requests over serve.max_connections",
    "idle": "idle connections closed to make room",
    "descriptors": "waits for free file descriptors",
    "slow_head": "request heads not complete in time",
    "large_head": "request heads too large",
    "slow_body": "request bodies too slow",
    "slow_reader": "clients that did not read their response",
    "body_memory": "bodies without room within serve.max_arriving_bytes",
}


class Refusals:
    """Counts what is refused.

    There is no timer: what was counted since the last line is logged with the next event.

    Args:
        count: Called with the reason of each refusal.
        clock: Returns monotonic seconds.
    """

    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._unlogged: Counter[str] = Counter()
        self._logged_at = -LOG_EVERY_S

    def note(self, reason: str) -> None:
        """Count a refusal for one of `REASONS`."""
        self._count(reason)
        self._unlogged[reason] += 1
        now = self._clock()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            counted = ", ".join(f"{count} {REASONS[reason]}" for reason, count in self._unlogged.items())
            self._unlogged.clear()
            log.warning("the HTTP server is at its bounds: %s; see edged_http_refused_total", counted)
