"""A published generation gets the traffic; the one before answers what it was asked, and ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import psutil

from service.config_sections import GatesConfig
from service.context import Context
from service.gauges import resident_bytes, show_live
from service.generation import Generation
from service.live_gates import check, observe
from service.serving import ModelService

log = logging.getLogger(__name__)

_ROOM_FOR_TWO = 1.5  # a second generation fits if this many times the first one's memory is free

Warmed = Callable[[float, str], Awaitable[None]]
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
    """Warm a generation, commit to it on disk, route to it, retire the one before. Hold `service.switching`.

    Args:
        context: What the supervisor owns.
        model: Model name.
        number: Published generation.
        policy: "availability": the new one is warm before the old one leaves. "resource": the old one leaves first,
            so that there is never memory for two. "auto": by free memory.
        warmed: Called with the seconds it took and the policy applied, before the commit point.
        live: Called when new requests go to the generation.
        gates: What the generation must show once it is warm; None on the way back to one that has served before.
        shadow_percent: Share of the live requests that are compared with the generation before, which then stays until
            `ModelService.end_shadow`; None for none.

    Returns:
        Seconds from the change of the route to the end of the generation before, or of its last request.

    Raises:
        GateError: It is not as `gates` want it; the current generation goes on serving.
        EdgedError: It does not come up, or the disk refuses; likewise.
    """
    service = context.services[model]
    await service.end_shadow()
    policy = choose(policy, service)
    start = time.monotonic()
    incumbent = None if gates is None else await observe(service.live, gates)
    try:
        if policy == "resource":
            await service.pause()
        generation = await service.prepare(number)
        try:
            if gates is not None:
                await check(generation, incumbent, gates)
            await warmed(time.monotonic() - start, policy)
            await context.disk(context.store.switch, model, number)
        except BaseException:
            await generation.stop()
            raise
    except BaseException:
        context.keep_current(model)
        raise
    start = time.monotonic()
    before = service.route(generation)
    try:
        await live()
    finally:
        if before is not None and shadow_percent is not None and _may_stay(before):
            await service.begin_shadow(before, shadow_percent, context.metrics.shadow_agreement.labels(model).set)
        elif before is not None:
            await service.retire(before)
    seconds = time.monotonic() - start
    context.metrics.swap_duration.labels(model).observe(seconds)
    await show_live(context, model, number)
    return seconds


def _may_stay(before: Generation) -> bool:
    """Whether the generation before can be kept: as much memory again as it takes must be free."""
    return before.serving and psutil.virtual_memory().available > resident_bytes(before.pid)


def choose(policy: str, service: ModelService) -> str:
    """What "auto" comes to, given the memory that is free now."""
    if policy != "auto":
        return policy
    if service.live is None:
        return "availability"
    needed = _ROOM_FOR_TWO * resident_bytes(service.live.pid)
    available = psutil.virtual_memory().available
    chosen = "availability" if available > needed else "resource"
    log.info("model %s: swap by %s, %d MiB are free", service.name, chosen, available >> 20)
    return chosen
