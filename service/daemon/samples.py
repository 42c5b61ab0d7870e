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
    """Ten seconds of a model.

    Attributes:
        at: End of the ten seconds, monotonic seconds.
        requests: Number of requests that were answered.
        failures: Number of them that failed with HTTP 5xx.
        p50_s: Median latency of the successful ones in seconds; None without any.
        p99_s: 99th percentile of their latency in seconds; None without any.
        memory_bytes: Resident memory of the serving process at the end; 0 if there was none.
    """

    at: float
    requests: int
    failures: int
    p50_s: float | None
    p99_s: float | None
    memory_bytes: int


class Samples:
    """The samples of the last hour, by model name."""

    def __init__(self) -> None:
        self._rings: dict[str, deque[Sample]] = {}
        self._next = 0.0

    def of(self, model: str) -> list[Sample]:
        """Return the samples of a model, the oldest first."""
        return list(self._rings.get(model, ()))

    def take_if_due(self, now: float, servers: Mapping[str, ModelServer]) -> None:
        """Sample every model, unless that was done less than `EVERY_S` ago. Call it about that often.

        Args:
            now: Monotonic seconds.
            servers: Servers by model name; the samples of other models are forgotten.
        """
        if now < self._next:
            return
        self._next = now + EVERY_S
        for name in self._rings.keys() - servers.keys():
            del self._rings[name]
        for name, server in servers.items():
            seen, server.recent = server.recent, RequestStats()
            pid = None if server.live is None else server.live.pid
            ring = self._rings.setdefault(name, deque(maxlen=int(KEEP_S / EVERY_S)))
            ring.append(
                Sample(
                    now, seen.requests, seen.failures, seen.quantile_s(0.5), seen.quantile_s(0.99), resident_bytes(pid)
                )
            )
