"""The last hour of each model, a sample every ten seconds: latency, errors and memory. Kept in memory only."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from service.serving.model_server import ModelServer
from service.serving.request_stats import RequestStats
from service.system.processes import resident_bytes

EVERY_S = 10.0
KEEP_S = 3600.0


@dataclass(frozen=True)
class Sample:
    """Ten seconds of one model.

    Attributes:
        at: When they ended, monotonic seconds.
        requests: Answered meanwhile.
        failures: Of them, with HTTP 5xx.
        p50_s: Median latency of the successes, seconds; None without any.
        p99_s: Likewise the 99th percentile.
        memory_bytes: Resident memory of the serving process at the end; 0 if there was none.
    """

    at: float
    requests: int
    failures: int
    p50_s: float | None
    p99_s: float | None
    memory_bytes: int


class Samples:
    """By model name; what is older than an hour goes."""

    def __init__(self) -> None:
        self._rings: dict[str, deque[Sample]] = {}
        self._next = 0.0

    def of(self, model: str) -> list[Sample]:
        """The oldest first."""
        return list(self._rings.get(model, ()))

    def take_if_due(self, now: float, servers: Mapping[str, ModelServer]) -> None:
        """Sample every model, unless that was done less than `EVERY_S` ago. Call it about that often.

        Args:
            now: Monotonic seconds.
            servers: By model name; others are forgotten.
        """
        if now < self._next:
            return
        self._next = now + EVERY_S
        for name in self._rings.keys() - servers.keys():
            del self._rings[name]
        for name, service in servers.items():
            seen, service.recent = service.recent, RequestStats()
            pid = None if service.live is None else service.live.pid
            ring = self._rings.setdefault(name, deque(maxlen=int(KEEP_S / EVERY_S)))
            ring.append(
                Sample(
                    now, seen.requests, seen.failures, seen.quantile_s(0.5), seen.quantile_s(0.99), resident_bytes(pid)
                )
            )
