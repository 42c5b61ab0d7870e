"""Gates that need a warm process: its interface, memory and speed, compared with the generation in service."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.errors import EdgedError, GateError
from edged.json_document import MALFORMED
from service.config.sections import GatesConfig
from service.serving.generation import Generation
from service.storage.generations import GenerationRepository
from service.system.processes import resident_bytes
from service.units import format_bytes
from service.worker.interface import Interface

log = logging.getLogger(__name__)

# A PNG of one gray pixel: small to send, and every model resizes it to its own input.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
_PROBE = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [_PIXEL]}]}).encode()
_PROBES = 9  # of which the fastest counts: other load on the machine can only slow them down
_PROBE_S = 30.0


@dataclass(frozen=True)
class Incumbent:
    """The generation in service, as far as a new one is compared with it.

    Attributes:
        number: Number of the generation.
        interface: Names, types and shapes, see `interface_of`.
        latency_s: Latency of one image in seconds; None if no gate needs it.
    """

    number: int
    interface: dict[str, Any]
    latency_s: float | None


async def observe(live: Generation | None, gates: GatesConfig) -> Incumbent | None:
    """Measure the generation in service before it is replaced; None if there is none.

    Raises:
        ServingError: It does not answer now.
        GateError: It answers with an error.
    """
    if live is None or not live.serving:
        return None
    latency_s = None if gates.max_latency_ratio is None else await measure_latency_s(live)
    return Incumbent(live.number, interface_of(live.metadata), latency_s)


async def check(generation: Generation, incumbent: Incumbent | None, gates: GatesConfig) -> None:
    """Check a warm generation against the gates of its model.

    Args:
        generation: Warm generation that gets no requests yet.
        incumbent: Generation that it is to replace; None for none.
        gates: Gates of the model.

    Raises:
        GateError: A gate is not met; the message has the value and the limit.
        ServingError: The generation does not answer.
    """
    used = resident_bytes(generation.pid)
    if gates.max_memory is not None and used > gates.max_memory:
        raise GateError(
            f"generation {generation.number} takes {format_bytes(used)} of memory, gates.max_memory is"
            f" {format_bytes(gates.max_memory)}; raise it or drop a smaller model"
        )
    if incumbent is None or incumbent.number == generation.number:
        return
    if gates.same_interface:
        _check_interface(interface_of(generation.metadata), incumbent)
    if gates.max_latency_ratio is not None and incumbent.latency_s is not None:
        latency_s = await measure_latency_s(generation)
        ratio = latency_s / incumbent.latency_s
        log.info("generation %d takes %.2f times as long as %d", generation.number, ratio, incumbent.number)
        if ratio > gates.max_latency_ratio:
            raise GateError(
                f"generation {generation.number} takes {1000 * latency_s:.2f} ms an image, {ratio:.2f} times the"
                f" {1000 * incumbent.latency_s:.2f} ms of generation {incumbent.number}; gates.max_latency_ratio is"
                f" {gates.max_latency_ratio:g}; raise it or drop a faster model"
            )


async def measure_latency_s(generation: Generation) -> float:
    """Measure the seconds that the process takes for one image, without the time in its queue.

    Raises:
        ServingError: It does not answer.
        GateError: It answers with an error.
    """
    seconds = []
    for _ in range(_PROBES):
        reply = await generation.infer(_PROBE, _PROBE_S, alone=True)
        if reply.status != 200:
            message = bytes(reply.body.content[:200]).decode(errors="replace")
            raise GateError(f"generation {generation.number} answers a plain image with HTTP {reply.status}: {message}")
        seconds.append(reply.seconds)
    return min(seconds)


async def interface_on_disk(generations: GenerationRepository, model: str, number: int) -> Interface | None:
    """Return the interface of a published generation; None if its manifest cannot be read."""
    try:
        manifest, _ = await generations.read(model, number)
        return Interface.of_manifest(manifest)
    except (EdgedError, OSError, *MALFORMED) as error:
        # The gate that needs a warm process still checks it.
        log.warning("model %s generation %d: its interface is not known: %r", model, number, error)
        return None


def interface_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return name, type and shape of each input and output. The names of the classes are not part of it."""
    return {
        f"{kind[:-1]} {tensor['name']}": {"datatype": tensor["datatype"], "shape": tensor["shape"]}
        for kind in ("inputs", "outputs")
        for tensor in metadata[kind]
    }


def _check_interface(interface: dict[str, Any], incumbent: Incumbent) -> None:
    for name in sorted(interface.keys() | incumbent.interface.keys()):
        new, old = interface.get(name), incumbent.interface.get(name)
        if new != old:
            raise GateError(
                f"{name} is {_described(new)}, in generation {incumbent.number} it is {_described(old)}; clients rely"
                " on it, set gates.same_interface: false to let it change"
            )


def _described(tensor: Mapping[str, Any] | None) -> str:
    return "missing" if tensor is None else f"{tensor['datatype']} {tensor['shape']}"
