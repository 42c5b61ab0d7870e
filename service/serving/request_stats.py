"""Statistics of a model's requests in constant memory: counts, failures and latencies. Reads no clock."""

from __future__ import annotations

import math

from service.serving.inference_stats import InferenceStats

# Buckets on a logarithmic scale: each quantile is right to 5 %, whatever the latency.
_LEAST_S = 1e-4
_STEP = 1.05
_BUCKETS = 300  # up to 220 s


class RequestStats:
    """Statistics of the requests over some time: a generation's life, or the seconds between two samples.

    Attributes:
        requests: Number of requests, answered or not.
        failures: Number of requests that failed by a fault of the server (HTTP 5xx). A full queue (429) is no fault of
            the model.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self._successes = 0
        self._buckets: dict[int, int] = {}

    def note(self, status: int, seconds: float) -> None:
        """Count one answered request. Only successes are timed: errors are faster or slower for other reasons.

        Args:
            status: HTTP status of the reply.
            seconds: Seconds from its arrival at the generation's queue to the reply.
        """
        self.requests += 1
        self.failures += status >= 500
        if status < 400:
            self._successes += 1
            index = _index(seconds)
            self._buckets[index] = self._buckets.get(index, 0) + 1

    def note_unanswered(self, *, failure: bool) -> None:
        """Count one request that got no reply from a generation.

        Args:
            failure: Whether the server is at fault.
        """
        self.requests += 1
        self.failures += failure

    @property
    def successes(self) -> int:
        """Number of requests that were timed."""
        return self._successes

    @property
    def judged(self) -> int:
        """Number of requests that say something about the server: no faults of the clients, and no full queue."""
        return self._successes + self.failures

    @property
    def error_rate(self) -> float:
        """Failures in percent of the requests in `judged`; 0 without any."""
        return 100.0 * self.failures / self.judged if self.judged else 0.0

    def quantile_s(self, share: float) -> float | None:
        """Return the seconds within which this share of the successes was answered, at most 5 % too long.

        Args:
            share: Share from 0 to 1.

        Returns:
            Seconds; None without any success.
        """
        wanted, seen = math.ceil(share * self._successes), 0
        for index in sorted(self._buckets):
            seen += self._buckets[index]
            if seen >= wanted:
                return float(_LEAST_S * _STEP**index)
        return None


class GenerationStats:
    """The statistics of a model, by the generation they belong to.

    Attributes:
        current: Requests of the generation in service.
        previous: Requests of the previous generation.
        recent: Requests of any generation since the last sample was taken; whoever samples replaces it.
        inference: What the requests of the generation in service took, part by part.
    """

    def __init__(self) -> None:
        self.current = RequestStats()
        self.previous = RequestStats()
        self.recent = RequestStats()
        self.inference = InferenceStats()
        self._number: int | None = None

    def begin(self, number: int) -> None:
        """Attribute new requests to generation `number`; its restart begins no new statistics."""
        if number != self._number:
            self._number = number
            self.previous, self.current = self.current, RequestStats()
            self.inference = InferenceStats()


def _index(seconds: float) -> int:
    """Return the bucket of which `seconds` is at most the upper end."""
    if seconds <= _LEAST_S:
        return 0
    return min(math.ceil(math.log(seconds / _LEAST_S, _STEP)), _BUCKETS)
