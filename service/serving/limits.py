"""How a model may be served, and who is told of what happens to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.ipc.options import Batching


@dataclass(frozen=True)
class ServingLimits:
    """How a model may be served.

    Attributes:
        threads: Threads of a generation; None for one a core.
        queue: Requests of one model that may wait or run at once.
        batching: How far a generation gathers them.
        start_s: Seconds that a generation may take to load and warm up.
        drain_s: Seconds that requests may take to finish when their generation is replaced.
        hang_s: Seconds on one request after which a generation counts as hung.
        backoff_s: First wait before a generation that died is started again; doubles up to 30 s.
    """

    threads: int | None = None
    queue: int = 64
    batching: Batching = field(default_factory=Batching)
    start_s: float = 180.0
    drain_s: float = 60.0
    hang_s: float = 120.0
    backoff_s: float = 0.5


@dataclass(frozen=True)
class Listener:
    """Who is told of what happens to a model in service; by default nobody.

    Attributes:
        restarted: Whenever a generation that died is started again: its number, and how it ended.
        not_started: Whenever one that died did not come up again.
        batched: How many images were computed together.
        observed: What a generation found in a request that it was to look at, see service.inference.observation.
    """

    restarted: Callable[[int, str], None] = lambda *_: None
    not_started: Callable[[], None] = lambda: None
    batched: Callable[[int], None] = lambda _: None
    observed: Callable[[dict[str, Any]], None] = lambda _: None
