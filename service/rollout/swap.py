"""A published generation gets the traffic; the one before answers what it was asked, and ends."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

from service.config.sections import GatesConfig
from service.daemon.context import Context
from service.daemon.gauges import show_live
from service.rollout.gates import check, observe
from service.rollout.policy import choose
from service.serving.generation import Generation
from service.serving.model_server import ModelServer
from service.system.free_memory import available_bytes
from service.system.processes import resident_bytes

Warmed = Callable[[float, dict[str, Any]], Awaitable[None]]
Live = Callable[[], Awaitable[None]]


async def go_live(
    context: Context,
    model: str,
    number: int,
    policy: str,
    warmed: Warmed,
    live: Live,
    gates: GatesConfig | None = None,
    shadow_percent: float | None = None,
) -> float:
    """Warm a generation, commit to it on disk, route to it, retire the one before. Hold `service.rollout.swap`.

    Args:
        context: What the supervisor owns.
        model: Model name.
        number: Published generation.
        policy: "availability", "resource" or "auto", see `Choice`.
        warmed: Called before the commit point, with the seconds it took and what the journal is to keep of the swap:
            the fields of `Choice`, and "warmup", see `Generation.warmup`.
        live: Called when new requests go to the generation.
        gates: What the generation must show once it is warm; None on the way back to one that has served before.
        shadow_percent: Share of the live requests that are compared with the generation before, which then stays until
            `ModelServer.end_shadow`; None for none.

    Returns:
        Seconds from the change of the route to the end of the generation before, or of its last request.

    Raises:
        GateError: It is not as `gates` want it; the current generation goes on serving.
        EdgedError: It does not come up, or the disk refuses; likewise.
    """
    service = context.servers[model]
    await service.end_shadow()
    choice = await choose(context, model, number, policy)
    start = time.monotonic()
    incumbent = None if gates is None else await observe(service.live, gates)
    try:
        if choice.policy == "resource":
            await service.pause()
        generation = await service.prepare(number)
        try:
            if gates is not None:
                await check(generation, incumbent, gates)
            swap = {**dataclasses.asdict(choice), "warmup": generation.warmup}
            await warmed(time.monotonic() - start, swap)
            await context.disk(context.store.switch, model, number)
        except BaseException:
            await generation.stop()
            raise
    except BaseException:
        context.keep_current(model)
        raise
    start = time.monotonic()
    before = service.route(generation)
    context.metrics.swaps.labels(model, choice.policy).inc()
    try:
        await live()
    finally:
        if before is not None:
            await _let_go(context, service, before, shadow_percent)
    seconds = time.monotonic() - start
    context.metrics.swap_duration.labels(model).observe(seconds)
    await show_live(context, model, number)
    return seconds


async def _let_go(context: Context, service: ModelServer, before: Generation, shadow_percent: float | None) -> None:
    """End the generation before, or keep it for comparison."""
    if shadow_percent is not None and _may_stay(before):
        show = context.metrics.shadow_agreement.labels(service.name).set
        await service.begin_shadow(before, shadow_percent, show)
    else:
        await service.retire(before)


def _may_stay(before: Generation) -> bool:
    """Whether the generation before can be kept: as much memory again as it takes must be free."""
    return before.serving and available_bytes() > resident_bytes(before.pid)
