"""Whether the work on an update may begin now: the device must be willing, and there must be room for what it makes."""

from __future__ import annotations

import logging
import time

from edged.errors import StateError
from service.config.load import ModelConfig
from service.daemon.context import Context
from service.journal.store import Update
from service.outcomes import Postponement
from service.storage.quota import Quota
from service.updates.conditions import why_not_now

log = logging.getLogger(__name__)


async def why_not(context: Context, update: Update, model: ModelConfig) -> Postponement | None:
    """Why the worker of an update cannot start now; None if it can. Hold the worker slot: caches may be removed.

    Raises:
        StateError: Room cannot be made.
    """
    worker = context.config.worker
    postponement = await context.disk(why_not_now, worker, context.device, time.time())
    if postponement is not None:
        return postponement
    storage = Quota(context.config, context.paths, context.store, context.journal)
    return await context.disk(storage.why_no_room, update, model, worker.recheck_s)


async def stay_within(context: Context, model: ModelConfig) -> None:
    """After an update: keep to storage.max_bytes, as far as that is possible."""
    storage = Quota(context.config, context.paths, context.store, context.journal)
    try:
        if context.worker_lock.locked():
            await context.disk(storage.make_room, 0, caches=False)
        else:
            async with context.worker_lock:
                await context.disk(storage.make_room, 0, caches_of=model)
    except StateError as error:  # the update has ended all the same; the next one tries again
        log.warning("model %s: %s", model.name, error)
