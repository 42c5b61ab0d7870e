"""Back to the generation before the current one."""

from __future__ import annotations

import logging
from typing import Any

from edged.errors import NotReadyError
from service.context import Context
from service.states import State
from service.switching import go_live

log = logging.getLogger(__name__)


async def roll_back(context: Context, model: str) -> dict[str, Any]:
    """Make the previous generation current and route to it.

    What was current is the previous one then, so that a second rollback undoes the first.

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
            at = "none" if current is None else current
            raise NotReadyError(f"model {model!r} has no generation to go back to; current: {at}")

        async def warmed(_: float, __: str) -> None:
            log.warning("model %s: rolling back from generation %d to %d", model, current, target)

        async def live() -> None:
            update = await context.disk(context.journal.for_generation, model, current)
            if update is not None and update.state in (State.COMMITTED, State.LIVE):
                reason = f"rolled back to generation {target} on request"
                await context.advance(update.id, State.ROLLED_BACK, code="rollback", reason=reason)
                context.metrics.updates.labels(model, "rolled_back", "rollback").inc()

        configured = context.config.model(model)
        policy = "auto" if configured is None else configured.swap
        await go_live(context, model, target, policy, warmed, live)
    return {"model": model, "from": current, "to": target}
