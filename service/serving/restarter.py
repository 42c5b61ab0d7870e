"""Starts a model's generation until it is up, and again after each crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from edged.errors import EdgedError
from service.serving.generation import Generation
from service.serving.limits import Listener, NothingWholeError, ServingLimits
from service.serving.waiting_room import WaitingRoom
from service.system.liveness import Liveness

log = logging.getLogger(__name__)

_STABLE_S = 60.0  # a generation that was up this long is restarted with the shortest backoff again
_MAX_BACKOFF_S = 30.0
# One that has answered since its start works. It is restarted soon however often it is killed, unless it crashes so
# often that requests must be the cause: each crash costs a load, and other models share the cores.
_MAX_BACKOFF_SERVED_S = 1.0
_LOOP_CRASHES = 20
_LOOP_S = 60.0
_WORTH_WAITING_S = 1.0  # requests wait for a restart that begins after no more than this


class Restarter:
    """Starts the generation of a model with exponential backoff, and counts its crashes.

    Args:
        model: Model name.
        start: Starts and warms a generation; raises an EdgedError if that fails.
        waiting_room: The model's waiting requests. They wait for a restart that begins soon, and no longer than its
            first failure.
        limits: Limits of the model; only `backoff_s` and `start_s` are used.
        listener: Receives crashes and failed starts.
        liveness: Learns how long a start may take.

    Attributes:
        problem: Why no generation is up, for a person; None if nothing went wrong.
        restarts: Number of crashes after which a generation was started again.
        failed_starts: Number of starts that failed.
        attempted: Set once a start has succeeded or failed.
    """

    def __init__(
        self,
        model: str,
        start: Callable[[int], Awaitable[Generation]],
        waiting_room: WaitingRoom,
        limits: ServingLimits,
        listener: Listener,
        liveness: Liveness,
    ) -> None:
        self.problem: str | None = None
        self.restarts = 0
        self.failed_starts = 0
        self.attempted = asyncio.Event()
        self._model = model
        self._start = start
        self._waiting_room = waiting_room
        self._limits = limits
        self._listener = listener
        self._liveness = liveness
        self._backoff_s = limits.backoff_s
        self._number: int | None = None  # the generation that `crashes` is about
        self._crashes_before = 0
        self._up_since = 0.0
        self._served_crashes: deque[float] = deque(maxlen=_LOOP_CRASHES)  # monotonic times of crashes after an answer

    @property
    def crashes(self) -> int:
        """Number of crashes and failed starts since the current generation was first routed to."""
        return self.restarts + self.failed_starts - self._crashes_before

    async def start(self, number: int, delay_s: float = 0.0) -> Generation:
        """Start generation `number`, again after each failure, until it is up, or the one that takes its place.

        Args:
            number: Published generation.
            delay_s: Seconds to wait before the first start.

        Raises:
            NothingWholeError: No generation of the model can be served.
        """
        with self._liveness.loop(f"keeper of {self._model}") as loop:
            while True:
                loop.expect_within(delay_s + self._limits.start_s)
                await asyncio.sleep(delay_s)
                try:
                    return await self._start(number)
                except EdgedError as error:
                    self._record_failed_start(number, error)
                    replacement = await self._replacement(number, error)
                if replacement is not None:
                    number, delay_s = replacement, 0.0
                else:
                    self._stop_waiting()
                    delay_s = self._next_delay_s()

    async def _replacement(self, number: int, error: EdgedError) -> int | None:
        """Return the generation to start instead of one that failed to start; None for the same one."""
        try:
            replacement = await self._listener.replacement(number, error)
        except NothingWholeError as nothing:
            self.problem = str(nothing)
            self._stop_waiting()
            raise
        return None if replacement == number else replacement

    def record_up(self, number: int) -> None:
        """Note that generation `number` is routed to; a new generation starts with no crashes and no backoff."""
        if number != self._number:
            self._number = number
            self._crashes_before = self.restarts + self.failed_starts
            self._backoff_s = self._limits.backoff_s
            self._served_crashes.clear()
        self._up_since, self.problem = time.monotonic(), None
        self.attempted.set()
        self._waiting_room.release()

    def record_crash(self, *, answered: bool = False) -> float:
        """Count a crash of the generation that is up.

        Args:
            answered: Whether it had answered a request since its start.

        Returns:
            Seconds to wait before it is started again.
        """
        now = time.monotonic()
        if now - self._up_since > _STABLE_S:
            self._backoff_s = self._limits.backoff_s
        if answered and not self._is_in_a_loop(now):
            self._backoff_s = min(self._backoff_s, max(self._limits.backoff_s, _MAX_BACKOFF_SERVED_S))
        self.problem = "has lost its process, which is being started again"
        self.restarts += 1
        delay_s = self._next_delay_s()
        if delay_s <= _WORTH_WAITING_S:
            self._waiting_room.hold()
        return delay_s

    def _is_in_a_loop(self, now: float) -> bool:
        """Note a crash after an answer; return whether there were too many of them lately."""
        self._served_crashes.append(now)
        return len(self._served_crashes) == _LOOP_CRASHES and now - self._served_crashes[0] < _LOOP_S

    async def report_crash(self, crashed: Generation, delay_s: float) -> None:
        """Log and report how the process of a generation ended, once that is known."""
        why = await crashed.ended()
        log.error(
            "model %s generation %d exited unexpectedly: %s; restarting it in %.1f s",
            *(self._model, crashed.number, why, delay_s),
        )
        self._listener.restarted(crashed.number, why)

    def _record_failed_start(self, number: int, error: EdgedError) -> None:
        self.failed_starts += 1
        self.problem = f"cannot start generation {number}: {error}"
        log.error("model %s %s", self._model, self.problem)
        self._listener.not_started()

    def _stop_waiting(self) -> None:
        """Let requests fail at once, and a daemon that starts go on without the model."""
        self.attempted.set()
        self._waiting_room.release()

    def _next_delay_s(self) -> float:
        delay_s = self._backoff_s
        self._backoff_s = min(2 * delay_s, _MAX_BACKOFF_S)
        return delay_s
