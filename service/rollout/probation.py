"""The first seconds of a generation under real traffic, in which it must prove itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from edged.errors import EdgedError
from service.config.sections import GatesConfig, ModelConfig
from service.daemon.context import Context
from service.journal.states import State
from service.outcomes import Failure, RolledBackError
from service.rollout.rollback import roll_back, target_of
from service.serving.model_server import ModelServer
from service.serving.request_stats import RequestStats
from service.serving.shadow import Shadow

log = logging.getLogger(__name__)

# Fewer requests say nothing: one failure of five is no error rate, and the p99 of ten requests is their maximum.
ENOUGH_FOR_ERRORS = 20
ENOUGH_FOR_P99 = 100
MAX_CRASHES = 2

_LOOK_S = 0.2


async def prove(
    context: Context,
    update_id: int,
    model: ModelConfig,
    generation: int,
    note: Callable[[str, float], None],
    *,
    resumed: bool = False,
) -> str | None:
    """Let a live generation prove itself under traffic; take it out of service if it does not.

    Args:
        context: What the supervisor owns.
        update_id: Of the update that put it in service.
        model: Its configuration.
        generation: Its number.
        note: Told "probation" and the seconds that it took, if there was one.
        resumed: Whether it went live before the daemon was started: its time counts from then, so that a restart does
            not begin it anew. Otherwise it counts from now, when the generation before has left.

    Returns:
        Why it failed and stays all the same, because the one before does not come up; None if all is well, and for a
        generation with none before it: nothing could follow from what it proved, and the next file would only wait.

    Raises:
        RolledBackError: Another generation is in service again.
    """
    update = await context.get(update_id)
    left_s = model.probation_s - (max(0.0, time.time() - update.updated_at) if resumed else 0.0)
    if update.state is not State.LIVE or left_s <= 0:
        return None
    if await context.disk(target_of, context, model.name) is None:
        log.info("update %d of %s: no probation, there is no generation to go back to", update_id, model.name)
        return None
    start, service = time.monotonic(), context.servers[model.name]
    if model.shadow_percent is not None and service.shadow is None:
        log.warning("model %s: the generation before is not in memory, so no request is compared with it", model.name)
    with context.metrics.model_probation.labels(model.name).track_inprogress():
        why = await watch(service, generation, left_s, model.gates)
    note("probation", time.monotonic() - start)
    await notice_rollback(context, update_id)
    if why is None:
        return None
    reason = f"generation {generation} failed its probation: {why}"
    log.error("update %d of %s: %s", update_id, model.name, reason)
    try:
        await roll_back(context, model.name, code="probation", why=reason, expected=generation)
    except EdgedError as error:
        await notice_rollback(context, update_id)  # an operator may have been faster
        return f"{reason}; it stays in service: {error}"
    await notice_rollback(context, update_id)
    return None


async def notice_rollback(context: Context, update_id: int) -> None:
    """Find out whether the generation that an update put in service was taken out of it again.

    Raises:
        RolledBackError: It was.
    """
    update = await context.get(update_id)
    current = context.store.current(update.model)
    if update.state is State.LIVE and current != update.generation:  # the daemon was stopped before it was journaled
        reason = f"rolled back to generation {current}"
        update = await context.advance(update.id, State.ROLLED_BACK, code="rollback", reason=reason)
    if update.state is State.ROLLED_BACK:
        raise RolledBackError(Failure(update.code or "rollback", update.reason or "rolled back", permanent=True))


async def watch(service: ModelServer, generation: int, seconds: float, gates: GatesConfig) -> str | None:
    """Wait until the probation of the live generation is over.

    Args:
        service: Routes to it.
        generation: Its number.
        seconds: How long the probation lasts.
        gates: What it must reach.

    Returns:
        Why it failed, as soon as that is certain; None if it passed, or if another generation took its place meanwhile.
    """
    end = time.monotonic() + seconds
    while service.wanted == generation:
        crashes = service.crashes
        if (left_s := end - time.monotonic()) <= 0:
            return failure_at_end(service, crashes, gates)
        if (reason := failure(service.stats, service.previous_stats, crashes, gates)) is not None:
            return reason
        if (reason := disagreement(service.shadow, gates, ended=False)) is not None:
            return reason
        await asyncio.sleep(min(_LOOK_S, left_s))
    return None


def failure(now: RequestStats, before: RequestStats, crashes: int, gates: GatesConfig) -> str | None:
    """Why the generation has failed already, whatever comes; None if it has not.

    Args:
        now: Its requests.
        before: Those of the generation before it.
        crashes: How often its process ended by itself or did not come up again.
        gates: What it must reach.
    """
    if crashes >= MAX_CRASHES:
        return f"its process ended {crashes} times by itself"
    # A service whose clients already met errors, say because it is overloaded, must not get worse; that is all.
    allowed = max(gates.max_error_rate, before.error_rate if before.requests >= ENOUGH_FOR_ERRORS else 0.0)
    if now.requests >= ENOUGH_FOR_ERRORS and now.error_rate > allowed:
        return (
            f"{now.failures} of {now.requests} requests failed ({now.error_rate:.1f} %), gates.max_error_rate is"
            f" {gates.max_error_rate:g} % and {before.error_rate:.1f} % failed before"
        )
    return None


def failure_at_end(service: ModelServer, crashes: int, gates: GatesConfig) -> str | None:
    """Why the generation failed, judged when its probation is over; None if it passed."""
    now, before = service.stats, service.previous_stats
    if (reason := failure(now, before, crashes, gates)) is not None:
        return reason
    if not service.ready:
        return f"it does not answer: {service.problem or 'its process is not up'}"
    if (reason := disagreement(service.shadow, gates, ended=True)) is not None:
        return reason
    if gates.max_p99_ratio is None or min(now.successes, before.successes) < ENOUGH_FOR_P99:
        return None
    p99_s, p99_before_s = now.quantile_s(0.99), before.quantile_s(0.99)
    if p99_s is None or p99_before_s is None or p99_s <= gates.max_p99_ratio * p99_before_s:
        return None
    return (
        f"p99 latency is {1000 * p99_s:.1f} ms, {p99_s / p99_before_s:.2f} times the {1000 * p99_before_s:.1f} ms"
        f" before; gates.max_p99_ratio is {gates.max_p99_ratio:g}"
    )


def disagreement(shadow: Shadow | None, gates: GatesConfig, *, ended: bool) -> str | None:
    """Why the generation agrees too little with the one before; None if it does not, or nobody compares."""
    if shadow is None or gates.min_shadow_agreement is None:
        return None
    return shadow.shortfall(gates.min_shadow_agreement, ended=ended)
