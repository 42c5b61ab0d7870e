"""Whether a new generation is started beside the one in service or after it: "availability" or "resource"."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from service.daemon.context import Context
from service.daemon.gauges import read_artifact
from service.system.free_memory import available_bytes
from service.system.processes import resident_bytes
from service.units import format_bytes

log = logging.getLogger(__name__)

# Python, torch and what a first pass allocates: a process that serves a small network takes that much (measured).
_BARE_BYTES = 256 << 20
_MARGIN = 1.5  # while it loads, a network is there more than once: packed, decoded, in the layout for computing


@dataclass(frozen=True)
class Choice:
    """How a generation is put in the place of another.

    Attributes:
        policy: "availability": the new one is warm before the old one leaves. "resource": the old one leaves first, so
            that there is never memory for two.
        asked: What the config says: one of these, or "auto".
        free_bytes: Memory that could be had; None where the config decided.
        needed_bytes: What the new process will take at most; likewise.
    """

    policy: str
    asked: str
    free_bytes: int | None = None
    needed_bytes: int | None = None


async def choose(context: Context, model: str, number: int, asked: str) -> Choice:
    """What "auto" comes to, given the memory that is free now; every other policy as it is.

    Args:
        context: What the supervisor owns.
        model: Model name.
        number: Generation that is to be started.
        asked: Policy of the config.
    """
    service = context.servers[model]
    if asked != "auto":
        return Choice(asked, asked)
    if service.wanted is None:  # there is nothing that could leave
        return Choice("availability", asked)
    network = await context.disk(_network_bytes, context, model, number)
    live = service.live
    live_bytes = 0 if live is None else resident_bytes(live.pid)
    live_network = 0 if live is None else await context.disk(_network_bytes, context, model, live.number)
    free, needed = available_bytes(), needed_bytes(live_bytes, live_network, network)
    choice = Choice("availability" if free > needed else "resource", asked, free, needed)
    told = (model, choice.policy, format_bytes(free), format_bytes(needed), number)
    log.info("model %s: swap by %s: %s of memory are free, %s are needed for generation %d", *told)
    return choice


def needed_bytes(live_bytes: int, live_network: int, network: int) -> int:
    """What the process of a new generation takes at most.

    Args:
        live_bytes: Resident memory of the generation in service; 0 without any.
        live_network: Size of its network's tensors, 0 if that is not known.
        network: Size of the new network's tensors, likewise.
    """
    if not live_bytes:
        taken = _BARE_BYTES + network
    elif live_network and network:
        taken = live_bytes - live_network + network
    else:
        taken = live_bytes
    return int(_MARGIN * max(taken, _BARE_BYTES // 2))


def _network_bytes(context: Context, model: str, number: int) -> int:
    """As the worker told it; 0 in artifacts that were written before it did, and where it cannot be read."""
    try:
        _, report = read_artifact(context, model, number)
        return int(report["totals"]["network_bytes"])
    except Exception as error:  # a guess will do: whether the artifact is whole is for the generation to say
        log.debug("model %s generation %d: size of its network not known: %r", model, number, error)
        return 0
