"""Leave a core to requests while there are any: the worker is kept off it from the first request until silence.

The supervisor changes only the cores that the worker's threads may use, never their number. Sums are divided among
threads, so codes would depend on the number; the cores that run the threads change nothing. It takes effect at once,
even in the middle of a layer, and the worker need not look. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.system.affinity import confine, fastest_core

log = logging.getLogger(__name__)

QUIET_S = 3.0  # without a request, after which the worker has all cores again


class HoldBack:
    """Keeps running workers off one core while requests arrive.

    Args:
        on_held: Called with the name of a model and the seconds for which its worker was held back since the last call.
        clock: Monotonic seconds.
        cores: Cores of this process; None to ask the system for each worker, as a power mode may turn some off.
    """

    def __init__(
        self,
        on_held: Callable[[str, float], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        cores: frozenset[int] | None = None,
    ) -> None:
        self._cores = cores
        self._on_held = on_held
        self._clock = clock
        self._requested_at = float("-inf")
        self._workers: list[HeldWorker] = []

    @property
    def cores(self) -> frozenset[int]:
        """The cores that this process may use now."""
        return frozenset(os.sched_getaffinity(0)) if self._cores is None else self._cores

    def note_request(self) -> None:
        """Hold the workers back from now on. Called for each request, so it is cheap."""
        self._requested_at = self._clock()
        for worker in self._workers:
            if not worker.busy:
                worker.update(busy=True)

    @property
    def busy(self) -> bool:
        """Whether there was a request within the last seconds."""
        return self._clock() - self._requested_at < QUIET_S

    @contextmanager
    def of(self, pid: int, model: str) -> Iterator[HeldWorker]:
        """Hold the worker of a model back while its process runs, if this process has several cores.

        Args:
            pid: Process ID of the worker.
            model: Name of its model.
        """
        cores = self.cores
        fewer = cores - {fastest_core(cores)}
        worker = HeldWorker(pid, cores, fewer, self._clock, lambda seconds: self._on_held(model, seconds))
        if fewer:
            self._workers.append(worker)
            worker.update(busy=self.busy)
        try:
            yield worker
        finally:
            if worker in self._workers:
                self._workers.remove(worker)
            worker.end()

    def check(self) -> None:
        """Give workers all cores again after some seconds of silence. Call it several times a second."""
        for worker in self._workers:
            worker.update(busy=self.busy)


class HeldWorker:
    """One worker and the cores that it may use.

    Args:
        pid: Process ID.
        cores: All cores.
        fewer: Cores that it keeps while requests arrive.
        clock: Monotonic seconds.
        on_held: Called with the seconds for which it was held back since the last call.

    Attributes:
        busy: Whether requests arrive.
        seconds: Seconds for which it was held back, up to the last `update`.
    """

    def __init__(
        self,
        pid: int,
        cores: frozenset[int],
        fewer: frozenset[int],
        clock: Callable[[], float],
        on_held: Callable[[float], None],
    ) -> None:
        self.busy = False
        self.seconds = 0.0
        self._pid = pid
        self._cores, self._fewer = cores, fewer
        self._clock = clock
        self._on_held = on_held
        self._held_since: float | None = None  # counted in `seconds` up to here
        self._measures = self._refused = False

    def measures(self, measuring: bool) -> None:
        """Leave all cores to the worker while it measures times, which must be those of the threads that will serve."""
        self._measures = measuring
        self.update(busy=self.busy)

    def update(self, *, busy: bool) -> None:
        """Hold the worker back if requests arrive, or give it all cores, and count the time until now."""
        self.busy = busy
        hold = busy and not self._measures
        if hold is (self._held_since is not None):
            self._count()
        elif not self._refused:
            self._apply(hold)

    def end(self) -> None:
        """Count the time until now: the process has ended."""
        self._count()
        self._held_since = None

    def _apply(self, hold: bool) -> None:
        try:
            confine(self._pid, self._fewer if hold else self._cores)
        except OSError as error:
            self._refused = True
            log.warning(
                "cannot keep the worker off a core while requests arrive: %s; set worker.threads to leave one to them",
                error.strerror,
            )
            return
        self._count()
        self._held_since = self._clock() if hold else None

    def _count(self) -> None:
        if self._held_since is None:
            return
        now = self._clock()
        seconds, self._held_since = now - self._held_since, now
        self.seconds += seconds
        self._on_held(seconds)
