"""One line on what is going on, for `systemctl status`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.serving.model_server import ModelServer
    from service.updates.queue import UpdateQueue


def status_line(
    phase: str | None,
    servers: Mapping[str, ModelServer],
    queues: Mapping[str, UpdateQueue],
    progress: Mapping[int, Mapping[str, Any]],
    watching: bool,
) -> str:
    """For example "serving cam generation 3; update 7 of cam: quantize 12/21; 1 more waits".

    Args:
        phase: "starting" or "stopping"; None in between.
        servers: By model name.
        queues: Likewise.
        progress: By update id: stage, done and total of its worker.
        watching: Whether the drop folder is being watched.
    """
    parts = [*_serving(servers), *_updates(queues, progress)]
    if phase is not None:
        parts.insert(0, phase)
    elif not watching:
        parts.append("the drop folder is not watched")
    return "; ".join(parts)


def _serving(servers: Mapping[str, ModelServer]) -> Iterator[str]:
    live = [f"{name} generation {service.live.number}" for name, service in servers.items() if service.live]
    if live:
        yield f"serving {', '.join(live)}"
    for name, service in servers.items():
        if service.live is None and service.wanted is not None:
            yield f"{name} {service.problem or f'generation {service.wanted} is being loaded'}"
        elif service.live is None:
            yield f"{name} has nothing to serve yet"


def _updates(queues: Mapping[str, UpdateQueue], progress: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    for name, lane in queues.items():
        if lane.active is not None:
            yield f"update {lane.active.id} of {name}: {_doing(lane, progress.get(lane.active.id))}"
    waiting = sum(lane.waiting - (lane.active is not None) for lane in queues.values())
    if waiting:
        yield f"{waiting} more wait" + ("s" if waiting == 1 else "")


def _doing(lane: UpdateQueue, progress: Mapping[str, Any] | None) -> str:
    if lane.deferred:
        return "deferred, it is tried again"
    if progress is None:
        return "on its way"
    return str(progress["stage"]) + (f" {progress['done']}/{progress['total']}" if progress["total"] else "")
