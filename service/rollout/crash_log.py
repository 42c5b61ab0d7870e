"""Counts and journals unexpected exits of serving processes."""

from __future__ import annotations

import asyncio
import logging

from edged.errors import StateError
from service.journal.repository import UpdateRepository
from service.metrics.registry import Metrics

log = logging.getLogger(__name__)


class CrashLog:
    """The record of the crashes of one model.

    Args:
        updates: Journal in which crashes are noted with the update that put the generation in service.
        metrics: Metrics of the daemon.
        model: Model name.
    """

    def __init__(self, updates: UpdateRepository, metrics: Metrics, model: str) -> None:
        self._updates = updates
        self._metrics = metrics
        self._model = model
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def restarted(self, generation: int, why: str) -> None:
        """Record that the process of a generation exited unexpectedly and is being restarted."""
        self._metrics.generation_restarts.labels(self._model).inc()
        self._count += 1
        # The first, second, fourth, eighth, ...: a process that crashes for months must not fill the disk.
        if self._count & (self._count - 1) == 0:
            task = asyncio.create_task(self._journal(generation, {"crash": why, "crashes": self._count}))
            self._tasks.add(task)  # the event loop itself holds tasks only weakly
            task.add_done_callback(self._tasks.discard)

    def not_started(self) -> None:
        """Record that a restart failed."""
        self._metrics.generation_failed_starts.labels(self._model).inc()

    async def _journal(self, generation: int, detail: dict[str, object]) -> None:
        try:
            update = await self._updates.brought_live(self._model, generation)
            if update is not None:
                await self._updates.note(update.id, detail)
        except StateError as error:
            log.warning("model %s: the crash of generation %d is not journaled: %s", self._model, generation, error)
