"""Gauges that are set when the metrics are scraped or at startup."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.config.current import CurrentConfig
from service.daemon.model_registry import ModelRegistry
from service.journal.holds import Holds
from service.metrics.registry import Metrics
from service.system.processes import resident_bytes
from service.worker.process import WorkerProcess


class Gauges:
    """Keeps the gauges up to date whose values change all the time.

    Args:
        config: Configuration in force.
        models: Configured models.
        holds: Pinned and paused models.
        workers: Running workers, by model name.
        waiting: When the wait of an update for its turn began, in seconds since 1970, by update id.
        metrics: Metrics of the daemon.
    """

    def __init__(
        self,
        config: CurrentConfig,
        models: ModelRegistry,
        holds: Holds,
        workers: Mapping[str, WorkerProcess],
        waiting: Mapping[int, float],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._models = models
        self._holds = holds
        self._workers = workers
        self._waiting = waiting
        self._metrics = metrics

    def show_history(self, last_times: Mapping[str, tuple[float, float | None]]) -> None:
        """Export what the journal knows of the time before this start, see `Journal.last_times`."""
        for model, (drop, success) in last_times.items():
            if model in self._models.servers:
                self._metrics.last_drop.labels(model).set(drop)
                if success is not None:
                    self._metrics.last_success.labels(model).set(success)

    async def exposition(self) -> tuple[bytes, str]:
        """Return the metrics in the Prometheus text format, and its content type."""
        self._refresh()
        # 7 ms for a model of 100 layers, measured; and a thermal sensor or a network file system may be slow.
        text = await asyncio.to_thread(generate_latest, self._metrics.registry)
        return text, CONTENT_TYPE_LATEST

    def _refresh(self) -> None:
        metrics, limit = self._metrics, self._config.current.worker.memory_max
        metrics.worker_memory_limit.set(math.inf if limit is None else limit)
        for name, server in self._models.servers.items():
            live = server.live
            hold = self._holds.of(name)
            metrics.model_pinned.labels(name).set(hold.pinned)
            metrics.model_paused.labels(name).set(hold.paused)
            metrics.model_ready.labels(name).set(live is not None and live.serving)
            metrics.requests_in_flight.labels(name).set(server.held + (0 if live is None else live.inflight))
            metrics.generation_start.labels(name).set(0 if live is None else live.start_seconds)
            metrics.generation_memory.labels(name).set(0 if live is None else resident_bytes(live.pid))
            worker = self._workers.get(name)
            metrics.worker_memory.labels(name).set(0 if worker is None else resident_bytes(worker.pid))
        for name, queue in self._models.queues.items():
            metrics.queue_length.labels(name).set(queue.waiting)
            since = [self._waiting[update.id] for update in queue.updates if update.id in self._waiting]
            metrics.queue_oldest.labels(name).set(min(since, default=0))
