"""Which generation of a model answers: keeps it alive, switches to the next one without losing a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.errors import EdgedError
from service.channel import Reply, ServingError
from service.generation import Generation
from service.sampling import Sampling
from service.traffic import Traffic

log = logging.getLogger(__name__)

_STABLE_S = 60.0  # a generation that lived this long starts with the shortest backoff again
_MAX_BACKOFF_S = 30.0


@dataclass(frozen=True)
class ServingLimits:
    """How a model may be served.

    Attributes:
        threads: Threads of a generation; None for one a core.
        queue: Requests of one model that may wait or run at once.
        start_s: Seconds that a generation may take to load and warm up.
        drain_s: Seconds that requests may take to finish when their generation is replaced.
        hang_s: Seconds on one request after which a generation counts as hung.
        backoff_s: First wait before a generation that died is started again; doubles up to 30 s.
    """

    threads: int | None = None
    queue: int = 64
    start_s: float = 180.0
    drain_s: float = 60.0
    hang_s: float = 120.0
    backoff_s: float = 0.5


class ModelService:
    """Routes the requests of one model to its live generation.

    Args:
        name: Model name.
        directory_of: Where the artifact of a generation lies.
        limits: How it may be served.
        restarted: Called whenever a generation that died is started again.
        observed: Told what a generation found in a request that it was to look at.

    Attributes:
        live: The generation that answers, None while there is none.
        problem: Why there is none, for a person; None if nothing went wrong.
        restarts: How often a generation died and was started again.
        failed_starts: How often one that died did not come up again.
        traffic: The requests of the generation in service.
        traffic_before: Of the one before it.
        recent: The requests since somebody last took it away to look at it.
        switching: Held by whoever changes the live generation.
        sampling: Which requests are looked at besides being answered.
    """

    def __init__(
        self,
        name: str,
        directory_of: Callable[[int], Path],
        limits: ServingLimits,
        restarted: Callable[[], None] = lambda: None,
        observed: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.limits = limits
        self.live: Generation | None = None
        self.problem: str | None = None
        self.restarts = 0
        self.failed_starts = 0
        self.traffic = Traffic()
        self.traffic_before = Traffic()
        self.recent = Traffic()
        self.switching = asyncio.Lock()
        self.sampling = Sampling()
        self._directory_of = directory_of
        self._restarted = restarted
        self._observed = observed
        self._tried = asyncio.Event()
        self._wanted: int | None = None
        self._counted: int | None = None  # the generation that `traffic` is about
        self._keeper: asyncio.Task[None] | None = None
        self._backoff_s = limits.backoff_s
        self._live_since = 0.0

    @property
    def wanted(self) -> int | None:
        """The generation that should answer."""
        return self._wanted

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now; true for a model that never had a generation."""
        return self._wanted is None or (self.live is not None and self.live.serving)

    async def infer(self, body: bytes, deadline_s: float, json_bytes: int | None = None) -> Reply:
        """Have the live generation answer; the arguments are those of `Channel.request`.

        Raises:
            ServingError: None is live, it is too busy or too slow, or it died.
        """
        if self.live is None:  # no generation's fault, so it is not held against one
            self.recent.note(ServingError.status, 0.0)
            raise ServingError(f"model {self.name!r} {self.problem or 'has no generation in service yet'}")
        traffic, start, status = self.traffic, time.monotonic(), ServingError.status
        try:
            reply = await self.live.infer(body, deadline_s, json_bytes, self.sampling.choose())
            status = reply.status
            return reply
        except ServingError as error:
            status = error.status
            raise
        finally:
            for counted in (traffic, self.recent):
                counted.note(status, time.monotonic() - start)

    def keep(self, number: int) -> None:
        """Have generation `number` answer as soon as it is up; whenever it dies, start it again."""
        self._cancel_keeper()
        self._wanted = number
        self._keeper = asyncio.create_task(self._bring_up(number, 0.0))

    async def first_try(self) -> None:
        """Wait until what `keep` asked for is up, or did not come up at the first try."""
        if self._wanted is not None:
            await self._tried.wait()

    async def prepare(self, number: int) -> Generation:
        """Start and warm generation `number` beside the live one.

        Raises:
            GateError: Its outputs are not finite.
            StartError: It did not come up.
        """
        generation = Generation(
            self.name,
            number,
            self._directory_of(number),
            threads=self.limits.threads,
            queue=self.limits.queue,
            on_exit=self._exited,
            on_observed=self._observed,
        )
        await generation.start(self.limits.start_s)
        return generation

    def route(self, generation: Generation) -> Generation | None:
        """From now on `generation` answers new requests; returns the one that did so far."""
        self._cancel_keeper()
        before, self.live = self.live, generation
        if self._counted != generation.number:
            self.traffic_before, self.traffic = self.traffic, Traffic()
            self._counted = generation.number
        self._wanted, self._live_since, self.problem = generation.number, time.monotonic(), None
        self._tried.set()
        if not generation.serving:  # it died since it was prepared
            self._exited(generation)
        return before

    async def retire(self, generation: Generation) -> None:
        """Let `generation` answer what it was asked, then stop it."""
        if not await generation.drain(self.limits.drain_s):
            log.warning("model %s generation %d: stopped with requests unanswered", self.name, generation.number)
        await generation.stop()

    async def pause(self) -> None:
        """Stop the live generation to free its memory; requests get 503 until `route` or `keep`."""
        self._cancel_keeper()
        before, self.live = self.live, None
        if before is not None:
            self.problem = "is being replaced; try again in some seconds"
            await self.retire(before)

    def check(self) -> None:
        """Kill a generation that hangs; it is then started again. Call every ten seconds or so."""
        if self.live is not None and self.live.stalled_s > self.limits.hang_s:
            log.error("model %s generation %d: no answer for %.0f s", self.name, self.live.number, self.limits.hang_s)
            self.live.kill()

    async def close(self) -> None:
        """Drain and stop."""
        self._wanted = None
        await self.pause()

    def _exited(self, generation: Generation) -> None:
        if generation is not self.live:
            return
        if time.monotonic() - self._live_since > _STABLE_S:
            self._backoff_s = self.limits.backoff_s
        log.error(
            "model %s generation %d ended unexpectedly; starting it again in %.1f s",
            *(self.name, generation.number, self._backoff_s),
        )
        self.live, self.problem = None, "has lost its process, which is being started again"
        self.restarts += 1
        self._restarted()
        self._keeper = asyncio.create_task(self._bring_up(generation.number, self._next_backoff()))

    def _next_backoff(self) -> float:
        current = self._backoff_s
        self._backoff_s = min(2 * current, _MAX_BACKOFF_S)
        return current

    async def _bring_up(self, number: int, delay_s: float) -> None:
        while True:
            await asyncio.sleep(delay_s)
            try:
                generation = await self.prepare(number)
                break
            except EdgedError as error:
                self.failed_starts += 1
                self.problem = f"cannot start generation {number}: {error}"
                log.error("model %s %s", self.name, self.problem)
                self._tried.set()
            delay_s = self._next_backoff()
        self._keeper = None  # not to be cancelled by `route`
        self.route(generation)

    def _cancel_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
