"""Back to the generation before the current one."""

from __future__ import annotations

import logging
from typing import Any

from edged.errors import NotReadyError, PinnedError
from service.context import Context
from service.states import State
from service.switching import go_live

log = logging.getLogger(__name__)


async def roll_back(
    context: Context, model: str, *, code: str = "rollback", why: str = "on request", expected: int | None = None
) -> dict[str, Any]:
    """Make the previous generation current and route to it.

    What was current is the previous one then, so that a second rollback undoes the first.

    Args:
        context: What the supervisor owns.
        model: Model name.
        code: For the journal and the metrics.
        why: For people.
        expected: Generation to roll back from; None for whichever is current.

    Returns:
        {"model", "from", "to"}: generation numbers.

    Raises:
        NotReadyError: There is no previous generation on disk, or `expected` is not the current one any more.
        PinnedError: The model is pinned.
        EdgedError: It does not come up; the current one goes on serving.
    """
    service, store = context.services[model], context.store
    async with service.switching:
        if context.holds.of(model).pinned:
            raise PinnedError(context.holds.pinned_reason(model))
        current, target = store.current(model), store.previous(model)
        if expected is not None and current != expected:
            raise NotReadyError(f"model {model!r} is at generation {current} already, not at {expected}")
        if current is None or target is None or not store.path(model, target).is_dir():
            at = "none" if current is None else current
            raise NotReadyError(f"model {model!r} has no generation to go back to; current: {at}")

        async def warmed(_: float, __: str) -> None:
            log.warning("model %s: rolling back from generation %d to %d: %s", model, current, target, why)

        async def live() -> None:
            update = await context.disk(context.journal.brought_live, model, current)
            if update is not None:
                reason = f"rolled back to generation {target}: {why}"
                await context.advance(update.id, State.ROLLED_BACK, code=code, reason=reason)
                context.metrics.count_update(model, "rolled_back", code)

        configured = context.config.model(model)
        policy = "auto" if configured is None else configured.swap
        await go_live(context, model, target, policy, warmed, live)
    return {"model": model, "from": current, "to": target}
