"""Back to the generation before the current one."""

from __future__ import annotations

import logging
from typing import Any

from edged.errors import NotReadyError, PinnedError
from service.daemon.context import Context
from service.journal.states import State
from service.reporting.files import write_report
from service.rollout.swap import go_live

log = logging.getLogger(__name__)


def target_of(context: Context, model: str) -> int | None:
    """The generation that a rollback would go to; None if there is none on the disk."""
    target = context.store.previous(model)
    return target if target is not None and context.store.path(model, target).is_dir() else None


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
    service, store = context.servers[model], context.store
    async with service.switching:
        context.require_model(model)  # a reload may have removed it meanwhile
        if context.holds.of(model).pinned:
            raise PinnedError(context.holds.pinned_reason(model))
        current, target = store.current(model), target_of(context, model)
        if expected is not None and current != expected:
            raise NotReadyError(f"model {model!r} is at generation {current} already, not at {expected}")
        if current is None or target is None:
            at = "none" if current is None else current
            raise NotReadyError(f"model {model!r} has no generation to go back to; current: {at}")

        journaled: dict[str, Any] = {}

        async def warmed(_: float, swap: dict[str, Any]) -> None:
            journaled.update(swap)
            log.warning("model %s: rolling back from generation %d to %d: %s", model, current, target, why)

        undone = await context.disk(context.journal.brought_live, model, current)

        async def live() -> None:
            if undone is not None:
                reason = f"rolled back to generation {target}: {why}"
                report = {**undone.report, "rollback": journaled}
                await context.advance(undone.id, State.ROLLED_BACK, code=code, reason=reason, report=report)
                context.metrics.count_update(model, "rolled_back", code)

        configured = context.config.model(model)
        policy = "auto" if configured is None else configured.swap
        await go_live(context, model, target, policy, warmed, live)
        if undone is not None:
            await write_report(context, undone.id)
    return {"model": model, "from": current, "to": target}
