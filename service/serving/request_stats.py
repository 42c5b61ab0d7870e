"""How requests went, in constant memory: how many, how many failed, how long they took. Reads no clock."""

from __future__ import annotations

import math

# Buckets on a logarithmic scale: each quantile is right to 5 %, whatever the latency.
_LEAST_S = 1e-4
_STEP = 1.05
_BUCKETS = 300  # up to 220 s


class RequestStats:
    """Requests over some time: a generation's life, or the seconds between two samples.

    Attributes:
        requests: That were answered, in whatever way.
        failures: Of them, with a fault of the server (HTTP 5xx). Too many requests (429) are no fault of the model.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self._successes = 0
        self._buckets: dict[int, int] = {}

    def note(self, status: int, seconds: float) -> None:
        """Count one request. Only successes are timed: errors are faster or slower for other reasons.

        Args:
            status: HTTP status.
            seconds: From its arrival at the generation's queue to the answer.
        """
        self.requests += 1
        self.failures += status >= 500
        if status < 400:
            self._successes += 1
            index = _index(seconds)
            self._buckets[index] = self._buckets.get(index, 0) + 1

    @property
    def successes(self) -> int:
        """Requests that were timed."""
        return self._successes

    @property
    def error_rate(self) -> float:
        """Failures in percent of the requests; 0 without any."""
        return 100.0 * self.failures / self.requests if self.requests else 0.0

    def quantile_s(self, share: float) -> float | None:
        """Seconds within which this share of the successes were answered, at most 5 % too long; None without any."""
        wanted, seen = math.ceil(share * self._successes), 0
        for index in sorted(self._buckets):
            seen += self._buckets[index]
            if seen >= wanted:
                return float(_LEAST_S * _STEP**index)
        return None


def _index(seconds: float) -> int:
    """The bucket of which `seconds` is at most the upper end."""
    if seconds <= _LEAST_S:
        return 0
    return min(math.ceil(math.log(seconds / _LEAST_S, _STEP)), _BUCKETS)
