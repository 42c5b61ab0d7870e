"""Whether a new generation starts while the previous one serves ("availability") or after it ("resource")."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from edged.heap import ENGINE_LOADING
from service.serving.model_server import ModelServer
from service.storage.generations import GenerationRepository
from service.system.free_memory import available_bytes
from service.system.processes import own_bytes, resident_bytes
from service.units import format_bytes

log = logging.getLogger(__name__)

# Python, the engine and the allocations of a first pass: what a process that serves a small network takes (measured:
# 77 MiB with ONNX Runtime, of which 41 are files that the next process shares; 248 MiB with torch).
_BARE_BYTES = 256 << 20
_LOADER_BYTES = 64 << 20
_SMALL_ENGINE = "onnxruntime"
_MARGIN = 1.5  # while it loads, a network is in memory more than once: packed, decoded, in the layout for computing


@dataclass(frozen=True)
class Choice:
    """How one generation replaces another.

    Attributes:
        policy: "availability": the new generation is warm before the previous one stops. "resource": the previous one
            stops first, so that there is never memory for two in use.
        asked: Policy of the config: one of these, or "auto".
        free_bytes: Memory that was available; None where the config decided.
        needed_bytes: Memory that the new process will take at most; None where the config decided.
    """

    policy: str
    asked: str
    free_bytes: int | None = None
    needed_bytes: int | None = None


async def choose(server: ModelServer, generations: GenerationRepository, number: int, asked: str) -> Choice:
    """Resolve the policy "auto" by the memory that is free now; return any other policy unchanged.

    Args:
        server: Server of the model.
        generations: Published generations.
        number: Generation that is to be started.
        asked: Policy of the config.
    """
    if asked != "auto":
        return Choice(asked, asked)
    if server.wanted is None:  # no generation is in service that could stop first
        return Choice("availability", asked)
    network, engine = await _network_of(generations, server, number)
    live_bytes = live_network = 0
    if (live := server.live) is not None and engine in ("", live.engine):  # another engine's memory says nothing
        live_bytes = own_bytes(live.pid) if engine == _SMALL_ENGINE else resident_bytes(live.pid)
        live_network, _ = await _network_of(generations, server, live.number)
    free, needed = available_bytes(), needed_bytes(live_bytes, live_network, network, engine)
    choice = Choice("availability" if free > needed else "resource", asked, free, needed)
    message = "model %s: swap by %s: %s of memory are free, %s are needed for generation %d"
    log.info(message, server.name, choice.policy, format_bytes(free), format_bytes(needed), number)
    return choice


def needed_bytes(live_bytes: int, live_network: int, network: int, engine: str) -> int:
    """Return the memory in bytes that the process of a new generation takes at most.

    Args:
        live_bytes: Memory of the generation in service that a second one would not share with it; 0 if there is none,
            or another engine computes it.
        live_network: Size of the tensors of its network; 0 if unknown.
        network: Size of the tensors of the new network; 0 if unknown.
        engine: Engine of the new generation; "" if unknown.
    """
    bare = _LOADER_BYTES if engine == _SMALL_ENGINE else _BARE_BYTES
    if not live_bytes:
        taken = bare + network
    elif live_network and network:
        taken = live_bytes - live_network + network
    else:
        taken = live_bytes
    loading = _LOADER_BYTES + ENGINE_LOADING * network if network else 0
    return max(int(_MARGIN * max(taken, bare // 2)), loading)


async def _network_of(generations: GenerationRepository, server: ModelServer, number: int) -> tuple[int, str]:
    """Return the size of a network, as its worker reported it, and its engine; 0 and "" where they are not known."""
    try:
        manifest, report = await generations.read(server.name, number)
        return int(report["totals"].get("network_bytes", 0)), _engine(manifest, server.limits.runtime)
    except Exception as error:  # an estimate is enough: the generation itself checks its artifact
        log.debug("model %s generation %d: size of its network not known: %r", server.name, number, error)
        return 0, ""


def _engine(manifest: dict[str, Any], runtime: str) -> str:
    if runtime != "auto":
        return runtime
    judged = (manifest.get("serve") or {}).get("engine")
    return str(judged or (_SMALL_ENGINE if manifest.get("onnx") else "torch"))
