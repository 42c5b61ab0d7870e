"""Options of a model in service: its limits, those of one generation, and who receives events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.errors import EdgedError, NotReadyError
from service.ipc.options import Batching

if TYPE_CHECKING:
    from service.serving.generation import Generation


class NothingWholeError(NotReadyError):
    """A model has generations, and none of them can be served: a new one has to be made."""

    code = "damaged"


@dataclass(frozen=True)
class GenerationOptions:
    """Options of one generation's process.

    Attributes:
        threads: Threads of the process; None for one per core.
        queue: Requests that may wait or run at once.
        batching: How requests are batched.
        background: Whether the process loads at background priority, because another generation serves meanwhile.
        runtime: Engine that computes, one of `edged.spec.RUNTIMES`.
        device: Device that torch computes on, "auto", "cpu" or "cuda".
        engine_cache: Folder for compiled models; None for no cache.
        providers: Where ONNX Runtime computes, names of `edged.spec.PROVIDERS`.
        labels: Names of the classes; None for those of the artifact.
    """

    threads: int | None = None
    queue: int = 64
    batching: Batching = field(default_factory=Batching)
    background: bool = False
    runtime: str = "auto"
    device: str = "cpu"
    engine_cache: Path | None = None
    providers: tuple[str, ...] = ("cpu",)
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ServingLimits:
    """Limits of a model in service.

    Attributes:
        threads: Threads of a generation; None for one per core.
        queue: Requests of one model that may wait or run at once.
        batching: How a generation batches requests.
        runtime: Engine of a generation, one of `edged.spec.RUNTIMES`.
        device: Device that torch computes on in a generation, "auto", "cpu" or "cuda".
        engine_cache: Folder for compiled models; None for no cache.
        providers: Where ONNX Runtime computes, names of `edged.spec.PROVIDERS`.
        labels: Names of the classes; None for those of the artifact.
        start_s: Seconds that a generation may take to load and warm up.
        drain_s: Seconds that requests may take to finish when their generation is replaced.
        hang_s: Seconds without a reply after which a generation counts as hung.
        backoff_s: Delay before a generation that crashed is restarted for the first time; doubles up to 30 s.
    """

    threads: int | None = None
    queue: int = 64
    batching: Batching = field(default_factory=Batching)
    runtime: str = "auto"
    device: str = "cpu"
    engine_cache: Path | None = None
    providers: tuple[str, ...] = ("cpu",)
    labels: tuple[str, ...] | None = None
    start_s: float = 180.0
    drain_s: float = 60.0
    hang_s: float = 120.0
    backoff_s: float = 0.5

    def of_generation(self, *, background: bool) -> GenerationOptions:
        """Return the options of one generation of the model."""
        return GenerationOptions(
            self.threads,
            self.queue,
            self.batching,
            background,
            self.runtime,
            self.device,
            self.engine_cache,
            self.providers,
            self.labels,
        )


async def _no_other(_number: int, _error: EdgedError) -> int | None:
    """Have the same generation started again."""
    return None


@dataclass(frozen=True)
class Listener:
    """Receives the events of a model in service; ignores them by default.

    Attributes:
        restarted: Called whenever a generation that crashed is restarted: its number, and how it ended.
        not_started: Called whenever a start failed.
        batched: Called with the number of images of each batch.
        observed: Called with the observation of a sampled request, see service.inference.observation.
        requested: Called when a request arrives.
        up: Called with each generation that is routed to outside of a swap: after a start of the daemon or a crash.
        replacement: Asked after a failed start with the number and the error: the number of the generation to start
            instead, or None to try again. Raises NothingWholeError if no start can succeed.
    """

    restarted: Callable[[int, str], None] = lambda *_: None
    not_started: Callable[[], None] = lambda: None
    batched: Callable[[int], None] = lambda _: None
    observed: Callable[[dict[str, Any]], None] = lambda _: None
    requested: Callable[[], None] = lambda: None
    up: Callable[[Generation], None] = lambda _: None
    replacement: Callable[[int, EdgedError], Awaitable[int | None]] = _no_other
