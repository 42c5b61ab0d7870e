"""The status line of the daemon, as `systemctl status` shows it. Pure."""

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
    """Return, for example, "serving cam generation 3; update 7 of cam: quantize 12/21; 1 more waits".

    Args:
        phase: "starting" or "stopping"; None in between.
        servers: Servers by model name.
        queues: Update queues by model name.
        progress: Stage, done and total of the worker of an update, by update id.
        watching: Whether the drop folder is being watched.
    """
    parts = [*_serving(servers), *_updates(queues, progress)]
    if phase is not None:
        parts.insert(0, phase)
    elif not watching:
        parts.append("the drop folder is not watched")
    return "; ".join(parts)


def _serving(servers: Mapping[str, ModelServer]) -> Iterator[str]:
    live = [f"{name} generation {server.live.number}" for name, server in servers.items() if server.live]
    if live:
        yield f"serving {', '.join(live)}"
    for name, server in servers.items():
        if server.live is None and server.wanted is not None:
            yield f"{name} {server.problem or f'generation {server.wanted} is being loaded'}"
        elif server.live is None:
            yield f"{name} has nothing to serve yet"


def _updates(queues: Mapping[str, UpdateQueue], progress: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    for name, queue in queues.items():
        if (active := queue.active) is not None:
            yield f"update {active.id} of {name} ({active.file_name}): {_doing(queue, progress.get(active.id))}"
    waiting = sum(queue.waiting - (queue.active is not None) for queue in queues.values())
    if waiting:
        yield f"{waiting} more wait" + ("s" if waiting == 1 else "")


def _doing(queue: UpdateQueue, progress: Mapping[str, Any] | None) -> str:
    if queue.deferred:
        return "deferred, it is tried again"
    if progress is None:
        return "on its way"
    text = str(progress["stage"]) + (f" {progress['done']}/{progress['total']}" if progress["total"] else "")
    return f"{text}, waits for {progress['waits_for']}" if "waits_for" in progress else text
