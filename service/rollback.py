"""Back to the generation before the current one."""

from __future__ import annotations

import logging
from typing import Any

from edged.errors import NotReadyError
from service.context import Context
from service.gauges import show_live
from service.states import State

log = logging.getLogger(__name__)


async def roll_back(context: Context, model: str) -> dict[str, Any]:
    """Warm the previous generation, make it current, route to it, retire the other.

    The previous one then is the one rolled back from, so that a second rollback undoes the first.

    Returns:
        {"model", "from", "to"}: generation numbers.

    Raises:
        NotReadyError: There is no previous generation on disk.
        EdgedError: It does not come up; the current one goes on serving.
    """
    service, store = context.services[model], context.store
    async with service.switching:
        current, target = store.current(model), store.previous(model)
        if current is None or target is None or not store.path(model, target).is_dir():
            raise NotReadyError(f"model {model!r} has no generation before the current one ({current}) to go back to")
        generation = await service.prepare(target)
        try:
            await context.disk(store.switch, model, target)
        except BaseException:
            await generation.stop()
            raise
        before = service.route(generation)
        await _journal(context, model, current, target)
        await show_live(context, model, target)
        if before is not None:
            await service.retire(before)
    log.warning("model %s rolled back from generation %d to %d", model, current, target)
    return {"model": model, "from": current, "to": target}


async def _journal(context: Context, model: str, current: int, target: int) -> None:
    """The update that brought `current` is rolled back now, if it was not before."""
    update = await context.disk(context.journal.for_generation, model, current)
    if update is not None and update.state in (State.COMMITTED, State.LIVE):
        reason = f"rolled back to generation {target} on request"
        await context.advance(update.id, State.ROLLED_BACK, code="rollback", reason=reason)
        context.metrics.updates.labels(model, "rolled_back", "rollback").inc()
