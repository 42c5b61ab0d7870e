"""Counts and journals generations that ended by themselves."""

from __future__ import annotations

import asyncio
import logging

from edged.errors import StateError
from service.daemon.context import Context

log = logging.getLogger(__name__)


class CrashLog:
    """What is remembered of the crashes of one model.

    Args:
        context: What the supervisor owns.
        model: Its name.
    """

    def __init__(self, context: Context, model: str) -> None:
        self._context = context
        self._model = model
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def restarted(self, generation: int, why: str) -> None:
        """A generation has ended by itself and is being started again."""
        self._context.metrics.generation_restarts.labels(self._model).inc()
        self._count += 1
        # The first, the second, the fourth, the eighth, ...: one that crashes for months must not fill the disk.
        if self._count & (self._count - 1) == 0:
            task = asyncio.create_task(self._journal(generation, {"crash": why, "crashes": self._count}))
            self._tasks.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._tasks.discard)

    def not_started(self) -> None:
        """One that had ended did not come up again."""
        self._context.metrics.generation_failed_starts.labels(self._model).inc()

    async def _journal(self, generation: int, detail: dict[str, object]) -> None:
        context = self._context
        try:
            update = await context.disk(context.journal.brought_live, self._model, generation)
            if update is not None:
                await context.disk(context.journal.note, update.id, detail)
        except StateError as error:
            log.warning("model %s: the crash of generation %d is not journaled: %s", self._model, generation, error)
