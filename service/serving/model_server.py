"""Which generation of a model answers: keeps it alive, switches to the next one without losing a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from edged.errors import EdgedError
from service.serving.channel import BusyError, NotStartedError, Reply, ServingError
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation
from service.serving.limits import Listener, ServingLimits
from service.serving.request_stats import RequestStats
from service.serving.sampling import Sampling
from service.serving.shadow import Shadow
from service.system.liveness import Liveness, Loop
from service.system.timeouts import within

log = logging.getLogger(__name__)

_STABLE_S = 60.0  # a generation that lived this long starts with the shortest backoff again
_MAX_BACKOFF_S = 30.0
_WORTH_WAITING_S = 1.0  # requests wait for a generation that is started again after no more than this


class ModelServer:
    """Routes the requests of one model to its live generation.

    Args:
        name: Model name.
        directory_of: Where the artifact of a generation lies.
        fork_server: What the processes of its generations are forked from.
        limits: How it may be served.
        told: Of what happens to it.
        liveness: Told how long starting and draining may take.

    Attributes:
        live: The generation that answers, None while there is none.
        problem: Why there is none, for a person; None if nothing went wrong.
        restarts: How often a generation died and was started again.
        failed_starts: How often one that died did not come up again.
        traffic: The requests of the generation in service.
        previous_stats: Of the one before it.
        held: Requests that wait for a generation that is on its way.
        shadow: Compares the live generation with the one before, while it is on probation and somebody asks for that.
        recent: The requests since somebody last took it away to look at it.
        switching: Parked by whoever changes the live generation.
        sampling: Which requests are looked at besides being answered.
    """

    def __init__(
        self,
        name: str,
        directory_of: Callable[[int], Path],
        fork_server: ForkServer,
        limits: ServingLimits,
        told: Listener = Listener(),  # noqa: B008 - frozen
        liveness: Liveness | None = None,
    ) -> None:
        self.name = name
        self.limits = limits
        self.live: Generation | None = None
        self.problem: str | None = None
        self.restarts = 0
        self.failed_starts = 0
        self.stats = RequestStats()
        self.previous_stats = RequestStats()
        self.recent = RequestStats()
        self.shadow: Shadow | None = None
        self.switching = asyncio.Lock()
        self.sampling = Sampling()
        self._directory_of = directory_of
        self._fork_server = fork_server
        self._told = told
        self._settled = asyncio.Event()  # not set while requests may wait for a generation that is on its way
        self._settled.set()
        self.held = 0
        self._liveness = liveness or Liveness()
        self._tried = asyncio.Event()
        self._wanted: int | None = None
        self._counted: int | None = None  # the generation that `traffic` is about
        self._keeper: asyncio.Task[None] | None = None
        self._backoff_s = limits.backoff_s
        self._live_since = 0.0
        self._crashes_before = 0

    @property
    def crashes(self) -> int:
        """How often the generation in service ended by itself or did not come up again, since it was routed to."""
        return self._all_crashes - self._crashes_before

    @property
    def _all_crashes(self) -> int:
        return self.restarts + self.failed_starts

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
        asked, traffic, start, status = self.live, self.stats, time.monotonic(), ServingError.status
        try:
            observe = self.sampling.choose()
            try:
                reply = await asked.infer(body, deadline_s, json_bytes, observe=observe)
            except NotStartedError:
                asked, left_s = await self._same_again(asked.number, deadline_s - (time.monotonic() - start))
                reply = await asked.infer(body, left_s, json_bytes, observe=observe)
            status = reply.status
            if self.shadow is not None:
                self.shadow.offer(asked.number, body, json_bytes, reply)
            return reply
        except ServingError as error:
            status = error.status
            raise
        finally:
            for counted in (traffic, self.recent):
                counted.note(status, time.monotonic() - start)

    async def _same_again(self, number: int, timeout_s: float) -> tuple[Generation, float]:
        """The generation with this number once it is up again, and the seconds that are left then.

        Raises:
            BusyError: Too many wait for it already.
            NotStartedError: It does not come up in time, or another one took its place.
        """
        left_s = await self.wait_until_up(max(0.0, timeout_s))
        if self.live is None or self.live.number != number:
            raise NotStartedError(f"model {self.name!r} has lost its process; try again in some seconds")
        return self.live, left_s

    async def wait_until_up(self, timeout_s: float) -> float:
        """Wait for a generation that is on its way: in a swap by "resource", or after the first crashes.

        Otherwise every request of those seconds would fail, not only those that the process took with it.

        Returns:
            Seconds that are left of `timeout_s`. Whether a generation answers now is for `infer` to say.

        Raises:
            BusyError: Too many wait already.
        """
        if self._settled.is_set():
            return timeout_s
        if self.held >= self.limits.queue:
            raise BusyError(f"model {self.name!r} has {self.held} requests waiting; try again later")
        start = time.monotonic()
        self.held += 1
        try:
            await within(timeout_s, self._settled.wait())
        except asyncio.TimeoutError:
            return 0.0
        finally:
            self.held -= 1
        return max(0.0, timeout_s - (time.monotonic() - start))

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
            self._fork_server,
            threads=self.limits.threads,
            queue=self.limits.queue,
            batching=self.limits.batching,
            beside=self.live is not None,
            on_batch=self._told.batched,
            on_exit=self._exited,
            on_observed=self._told.observed,
        )
        with self._liveness.bounded(f"start of {self.name} generation {number}", self.limits.start_s):
            await generation.start(self.limits.start_s)
        return generation

    def route(self, generation: Generation) -> Generation | None:
        """From now on `generation` answers new requests; returns the one that did so far."""
        self._cancel_keeper()
        before, self.live = self.live, generation
        if self._counted != generation.number:
            self.previous_stats, self.stats = self.stats, RequestStats()
            self._counted = generation.number
            self._crashes_before, self._backoff_s = self._all_crashes, self.limits.backoff_s
        self._wanted, self._live_since, self.problem = generation.number, time.monotonic(), None
        self._tried.set()
        self._settled.set()
        if not generation.serving:  # it died since it was prepared
            self._exited(generation)
        return before

    async def retire(self, generation: Generation) -> None:
        """Let `generation` answer what it was asked, then stop it."""
        with self._liveness.bounded(f"end of {self.name} generation {generation.number}", self.limits.drain_s):
            try:
                if not await generation.drain(self.limits.drain_s):
                    log.warning("model %s generation %d: stopped with requests unanswered", *self._named(generation))
            finally:  # also when nobody waits for it any more: there is no other reference to the process
                await generation.stop()

    def _named(self, generation: Generation) -> tuple[str, int]:
        return self.name, generation.number

    async def begin_shadow(self, before: Generation, percent: float, show: Callable[[float], None]) -> None:
        """Let `before` answer what it was asked, then compare the live generation with it."""
        proving, drained = self.wanted, False
        try:
            drained = await before.drain(self.limits.drain_s)
        finally:
            if not drained or proving is None:
                await before.stop()
        if drained and proving is not None:
            told = (self.name, percent, before.number)
            log.info("model %s: %g %% of the requests are compared with generation %d", *told)
            self.shadow = Shadow(before, proving, percent, show)

    async def end_shadow(self) -> None:
        """Stop the generation that the live one is compared with, if there is one."""
        shadow, self.shadow = self.shadow, None
        if shadow is not None:
            await shadow.end()

    async def pause(self) -> None:
        """Stop the live generation to free its memory; requests wait for the next one, see `wait_until_up`."""
        if self._wanted is not None:
            self._settled.clear()
        await self._leave("is being replaced; try again in some seconds")

    def check(self) -> None:
        """Kill a generation that hangs; it is then started again. Call every ten seconds or so."""
        if self.live is not None and self.live.stalled_s > self.limits.hang_s:
            log.error("model %s generation %d: no answer for %.0f s", self.name, self.live.number, self.limits.hang_s)
            self.live.kill()

    async def close(self) -> None:
        """Drain and stop."""
        self._wanted = None
        self._tried.set()
        self._settled.set()
        await self.end_shadow()
        await self._leave("is not served any more")

    async def _leave(self, problem: str) -> None:
        self._cancel_keeper()
        before, self.live = self.live, None
        if before is not None:
            self.problem = problem
            await self.retire(before)

    def _exited(self, generation: Generation) -> None:
        if generation is not self.live:
            return
        if time.monotonic() - self._live_since > _STABLE_S:
            self._backoff_s = self.limits.backoff_s
        self.live, self.problem = None, "has lost its process, which is being started again"
        self.restarts += 1
        delay_s = self._next_backoff()
        if delay_s <= _WORTH_WAITING_S:
            self._settled.clear()
        self._keeper = asyncio.create_task(self._start_again(generation, delay_s))

    async def _start_again(self, generation: Generation, delay_s: float) -> None:
        why = await generation.ended()
        named = (self.name, generation.number)
        log.error("model %s generation %d ended unexpectedly: %s; starting it again in %.1f s", *named, why, delay_s)
        self._told.restarted(generation.number, why)
        await self._bring_up(generation.number, delay_s)

    def _next_backoff(self) -> float:
        current = self._backoff_s
        self._backoff_s = min(2 * current, _MAX_BACKOFF_S)
        return current

    async def _bring_up(self, number: int, delay_s: float) -> None:
        with self._liveness.loop(f"keeper of {self.name}") as loop:
            generation = await self._start_until_up(number, delay_s, loop)
        self._keeper = None  # not to be cancelled by `route`
        self.route(generation)

    async def _start_until_up(self, number: int, delay_s: float, loop: Loop) -> Generation:
        while True:
            loop.expect_within(delay_s + self.limits.start_s)
            await asyncio.sleep(delay_s)
            try:
                return await self.prepare(number)
            except EdgedError as error:
                self.failed_starts += 1
                self.problem = f"cannot start generation {number}: {error}"
                log.error("model %s %s", self.name, self.problem)
                self._told.not_started()
                self._tried.set()
                self._settled.set()
            delay_s = self._next_backoff()

    def _cancel_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
