"""Routing of one model's requests: to the generation in service, and to the next one without losing a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.ipc.messages import Form, Reply
from service.ipc.shared_memory import RequestBody
from service.serving.channel import Done, NotStartedError, Question, ServingError
from service.serving.class_names import class_names, renaming
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation, GenerationEvents
from service.serving.limits import Listener, NothingWholeError, ServingLimits
from service.serving.request_stats import GenerationStats, RequestStats
from service.serving.restarter import Restarter
from service.serving.sampling import Sampling
from service.serving.shadow import Shadow
from service.serving.waiting_room import WaitingRoom
from service.system.liveness import Liveness

log = logging.getLogger(__name__)


class ModelServer:
    """Routes the requests of one model to its live generation.

    Args:
        name: Model name.
        directory_of: Returns the folder of a generation's artifact.
        fork_server: Forks the processes of the generations.
        limits: Limits of the model.
        listener: Receives crashes, failed starts, batches and observations.
        liveness: Learns how long starting and draining may take.

    Attributes:
        limits: Limits of the model; a change counts from the next generation's start.
        live: The generation that answers; None while there is none.
        lost: Why the model has nothing to serve although it had generations; None otherwise.
        shadow: Compares the live generation with the previous one during its probation; None if that was not asked for.
        switching: Held by whoever changes the live generation.
        sampling: Which requests are sampled.
        counts: Statistics of its requests.
    """

    def __init__(
        self,
        name: str,
        directory_of: Callable[[int], Path],
        fork_server: ForkServer,
        limits: ServingLimits,
        listener: Listener = Listener(),  # noqa: B008 - frozen
        liveness: Liveness | None = None,
    ) -> None:
        self.name = name
        self.limits = limits
        self.live: Generation | None = None
        self.lost: str | None = None
        self.shadow: Shadow | None = None
        self.switching = asyncio.Lock()
        self.sampling = Sampling()
        self._directory_of = directory_of
        self._fork_server = fork_server
        self._listener = listener
        self._liveness = liveness or Liveness()
        self.counts = GenerationStats()
        self._waiting_room = WaitingRoom(name)
        self._restarter = Restarter(name, self.prepare, self._waiting_room, limits, listener, self._liveness)
        self._wanted: int | None = None
        self._routed: Mapping[str, Any] | None = None  # metadata of the last generation that was routed to
        self._keeper: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> int | None:
        """The generation that should answer."""
        return self._wanted

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now; true for a model that never had a generation."""
        if self._wanted is None:
            return self.lost is None
        return self.live is not None and self.live.serving

    @property
    def problem(self) -> str | None:
        """Why no generation answers, for a person; None if nothing went wrong."""
        return self.lost or self._restarter.problem

    @property
    def restarts(self) -> int:
        """Number of crashes after which a generation was started again."""
        return self._restarter.restarts

    @property
    def crashes(self) -> int:
        """Number of crashes and failed starts of the generation in service, since it was first routed to."""
        return self._restarter.crashes

    @property
    def held(self) -> int:
        """Number of requests that wait for a generation that is on its way."""
        return self._waiting_room.held

    @property
    def stats(self) -> RequestStats:
        """Statistics of the requests of the generation in service."""
        return self.counts.current

    @property
    def previous_stats(self) -> RequestStats:
        """Statistics of the requests of the previous generation."""
        return self.counts.previous

    @property
    def recent(self) -> RequestStats:
        """Statistics of all requests since the last sample was taken; whoever samples replaces them."""
        return self.counts.recent

    @recent.setter
    def recent(self, stats: RequestStats) -> None:
        self.counts.recent = stats

    # Requests

    async def infer(
        self, body: RequestBody, deadline_s: float, json_bytes: int | None = None, form: Form | None = None
    ) -> Reply:
        """Have the live generation answer; the arguments are those of `Channel.request`.

        Raises:
            ServingError: No generation is live; or it is too busy or too slow, or it crashed.
        """
        self._listener.requested()
        if self.live is None:  # no generation is at fault, so none has this in its statistics
            self.counts.recent.note_unanswered(failure=True)
            raise ServingError(f"model {self.name!r} {self.problem or 'has no generation in service yet'}")
        counting = _Counting(self.counts)
        outcome: Reply | ServingError | None = None
        try:
            outcome = reply = await self._ask(self.live, body, deadline_s, json_bytes, form)
            return reply
        except ServingError as error:
            outcome = error
            raise
        finally:
            counting.end(outcome)

    def begin(self, question: Question, deadline_s: float, done: Done) -> bool:
        """Have the live generation answer as `infer` does, without a task, if that is possible at once.

        Args:
            question: The request.
            deadline_s: Seconds that the reply may take.
            done: Called with the outcome. If it is a NotStartedError, the request was not counted, and `infer` can
                have another process answer it.

        Returns:
            Whether the request is with the generation; if not, it is for `infer` to answer it or to say why not.
        """
        generation, counting = self.live, _Counting(self.counts)
        if generation is None or not self._waiting_room.is_open:
            return False

        def answered(outcome: Reply | ServingError) -> None:
            if isinstance(outcome, Reply):
                generation.answered = True
                if self.shadow is not None:
                    self.shadow.offer(generation.number, question.body, question.json_bytes, outcome, question.form)
            done(outcome)  # first: counting takes as long as sending
            if not isinstance(outcome, NotStartedError):
                counting.end(outcome)

        if (observe := self.sampling.choose()) is not None:
            question = question._replace(observe=observe)
        try:
            generation.begin(question, deadline_s, answered)
        except ServingError:
            return False
        self._listener.requested()
        return True

    async def wait_until_up(self, timeout_s: float) -> float:
        """Wait for a generation that is on its way: in a swap by "resource", or after the first crashes.

        Returns:
            Seconds that are left of `timeout_s`. Whether a generation answers now is for `infer` to say.

        Raises:
            BusyError: Too many requests wait already.
        """
        return await self._waiting_room.wait(timeout_s, self.limits.queue)

    async def _ask(
        self, generation: Generation, body: RequestBody, deadline_s: float, json_bytes: int | None, form: Form | None
    ) -> Reply:
        """Have a generation answer, or its next process where the first one exited before it started the request."""
        start, observe = time.monotonic(), self.sampling.choose()
        try:
            reply = await generation.infer(body, deadline_s, json_bytes, observe=observe, form=form)
        except NotStartedError:
            left_s = deadline_s - (time.monotonic() - start)
            generation, left_s = await self._restarted(generation.number, left_s)
            reply = await generation.infer(body, left_s, json_bytes, observe=observe, form=form)
        if self.shadow is not None:
            self.shadow.offer(generation.number, body, json_bytes, reply, form)
        return reply

    async def _restarted(self, number: int, timeout_s: float) -> tuple[Generation, float]:
        """Return generation `number` once it is up again, and the seconds that are left then.

        Raises:
            BusyError: Too many requests wait for it already.
            NotStartedError: It is not up in time, or another generation replaced it.
        """
        left_s = await self.wait_until_up(max(0.0, timeout_s))
        if self.live is None or self.live.number != number:
            raise NotStartedError(f"model {self.name!r} has lost its process; try again in some seconds")
        return self.live, left_s

    # Generations

    def keep(self, number: int) -> None:
        """Start generation `number` and route to it once it is up; restart it whenever it crashes."""
        self._cancel_keeper()
        self._wanted, self.lost = number, None
        self._keeper = asyncio.create_task(self._keep_up(number))

    def lose(self, why: str) -> None:
        """Serve nothing, because no generation is whole, until one is routed to.

        Args:
            why: What is wrong, as a clause that the name of the model begins.
        """
        self._wanted, self.lost = None, why

    async def first_try(self) -> None:
        """Wait until the first start that `keep` began has succeeded or failed."""
        if self._wanted is not None:
            await self._restarter.attempted.wait()

    async def prepare(self, number: int) -> Generation:
        """Start and warm generation `number` while the live one serves.

        Raises:
            GateError: Its outputs are not finite.
            StartError: Its process cannot be started.
        """
        generation = Generation(
            self.name,
            number,
            self._directory_of(number),
            self._fork_server,
            self.limits.of_generation(background=self.live is not None),
            GenerationEvents(self._listener.batched, self._exited, self._listener.observed),
        )
        with self._liveness.bounded(f"start of {self.name} generation {number}", self.limits.start_s):
            await generation.start(self.limits.start_s)
        return generation

    def route(self, generation: Generation) -> Generation | None:
        """Route new requests to `generation`; returns the one that was live so far."""
        self._cancel_keeper()
        previous, self.live = self.live, generation
        self._wanted, self.lost = generation.number, None
        if (renamed := self.renaming_by(generation)) is not None:
            log.warning("model %s generation %d: %s", self.name, generation.number, renamed)
        self._routed = generation.metadata
        self.counts.begin(generation.number)
        self._restarter.record_up(generation.number)
        if not generation.serving:  # it crashed since it was prepared
            self._exited(generation)
        return previous

    async def retire(self, generation: Generation) -> None:
        """Let `generation` answer the requests it has, then stop it."""
        named = (self.name, generation.number)
        with self._liveness.bounded(f"end of {self.name} generation {generation.number}", self.limits.drain_s):
            try:
                if not await generation.drain(self.limits.drain_s):
                    log.warning("model %s generation %d: stopped with requests unanswered", *named)
            finally:  # even if this is cancelled: there is no other reference to the process
                await generation.stop()

    async def pause(self) -> None:
        """Stop the live generation to free its memory; requests wait for the next one, see `wait_until_up`."""
        if self._wanted is not None:
            self._waiting_room.hold()
        await self._retire_live("is being replaced; try again in some seconds")

    def check(self) -> None:
        """Kill a generation that hangs; it is then restarted. Call every ten seconds or so."""
        if self.live is not None and self.live.stalled_s > self.limits.hang_s:
            log.error("model %s generation %d: no reply for %.0f s", self.name, self.live.number, self.limits.hang_s)
            self.live.kill()

    async def close(self) -> None:
        """Drain and stop."""
        self._wanted = None
        self._restarter.attempted.set()
        self._waiting_room.release()
        await self.end_shadow()
        await self._retire_live("is not served any more")

    async def begin_shadow(self, previous: Generation, percent: float, show: Callable[[float], None]) -> None:
        """Let the previous generation answer the requests it has, then compare the live one with it.

        Args:
            previous: The generation that served before.
            percent: Share of the live requests that are compared.
            show: Called with the agreement so far, 0 to 1.
        """
        proving, drained = self.wanted, False
        try:
            drained = await previous.drain(self.limits.drain_s)
        finally:
            if not drained or proving is None:
                await previous.stop()
        if drained and proving is not None:
            log.info(
                "model %s: %g %% of the requests are compared with generation %d",
                *(self.name, percent, previous.number),
            )
            self.shadow = Shadow(previous, proving, percent, show)

    async def end_shadow(self) -> None:
        """Stop the generation that the live one is compared with, if there is one."""
        shadow, self.shadow = self.shadow, None
        if shadow is not None:
            await shadow.end()

    async def _keep_up(self, number: int, delay_s: float = 0.0, crashed: Generation | None = None) -> None:
        """Start a generation, after a crash with a delay, and route to it."""
        if crashed is not None:
            await self._restarter.report_crash(crashed, delay_s)
        try:
            generation = await self._restarter.start(number, delay_s)
        except NothingWholeError as error:
            self._keeper = None
            self.lose(str(error))
            return
        self._keeper = None  # `route` would cancel this very task
        self.route(generation)
        self._listener.up(generation)

    def renaming_by(self, generation: Generation) -> str | None:
        """Return how the class names in answers change once `generation` is routed to; None if they do not."""
        return None if self._routed is None else renaming(*map(class_names, (generation.metadata, self._routed)))

    def _exited(self, generation: Generation) -> None:
        if generation is not self.live:
            return
        self.live = None
        delay_s = self._restarter.record_crash(answered=generation.answered)
        self._keeper = asyncio.create_task(self._keep_up(generation.number, delay_s, generation))

    async def _retire_live(self, problem: str) -> None:
        self._cancel_keeper()
        previous, self.live = self.live, None
        if previous is not None:
            self._restarter.problem = problem
            await self.retire(previous)

    def _cancel_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None


class _Counting:
    """One request that is being counted, for the generation that was in service when it began.

    Args:
        counts: Statistics of the model.
    """

    def __init__(self, counts: GenerationStats) -> None:
        self._stats = (counts.current, counts.recent)
        self._inference = counts.inference
        self._start_ns = time.monotonic_ns()

    def end(self, outcome: Reply | ServingError | None) -> None:
        """Count the request.

        Args:
            outcome: The reply, or why there is none; None if that is another error.
        """
        end_ns = time.monotonic_ns()
        if isinstance(outcome, Reply):
            for stats in self._stats:
                stats.note(outcome.status, (end_ns - self._start_ns) / 1e9)
            self._inference.note(outcome.status, self._start_ns, end_ns, outcome.work, time.time())
            return
        for stats in self._stats:
            stats.note_unanswered(failure=outcome is None or outcome.is_failure)
        self._inference.note(None, self._start_ns, end_ns, None, time.time())
