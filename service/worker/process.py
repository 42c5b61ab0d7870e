"""The supervisor's side of a worker: spawns it, reads its events, enforces its limits. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import psutil

from service.outcomes import Failure
from service.system.liveness import Liveness, Loop
from service.system.log_flood import OUTPUT
from service.system.oom_kills import OomKills
from service.system.processes import FEW_KERNELS, child_environment
from service.units import format_bytes
from service.worker.hold_back import HeldWorker, HoldBack
from service.worker.job import Job
from service.worker.memory_trace import MemoryTrace
from service.worker.starvation import Starvation

log = logging.getLogger(__name__)
output = logging.getLogger(f"{__name__}.{OUTPUT}")

_MEMORY_POLL_S = 0.2
_LINE_LIMIT = 1 << 20
_STARVED = 0.1  # of its time, on all cores together, below which a worker that is not done got too few of them

EventHandler = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class WorkerLimits:
    """Limits of a worker.

    Attributes:
        memory_max: Largest resident memory in bytes; None for no limit.
        deadline_s: Longest run time, seconds of wall time.
        nice: Niceness of the process.
    """

    memory_max: int | None = None
    deadline_s: float = 3600.0
    nice: int = 19


@dataclass(frozen=True)
class Done:
    """The result of a worker that has written its artifact.

    Attributes:
        totals: The entry `totals` of report.json.
    """

    totals: dict[str, Any]


class WorkerProcess:
    """A child process that runs one job.

    Args:
        job: Job to run.
        limits: Limits of the process.
        on_event: Called with every event of the worker, see service.worker.main, and with {"event": "waits", "for"}
            whenever it waits for something else.
        liveness: Registers the loop that enforces the limits.
        hold_back: Keeps the process off a core while requests arrive; None to leave it all cores.

    Attributes:
        pid: Process ID; None before the process runs.
        peak_bytes: Largest resident memory that was sampled, in bytes.
        memory: Resident memory over the seconds since the start.
    """

    def __init__(
        self,
        job: Job,
        limits: WorkerLimits,
        on_event: EventHandler,
        liveness: Liveness | None = None,
        hold_back: HoldBack | None = None,
    ) -> None:
        self._liveness = liveness or Liveness()
        self._job = job
        self._limits = limits
        self._on_event = on_event
        self._hold_back = hold_back
        self._held: HeldWorker | None = None
        self._last: dict[str, Any] = {}
        self._doing = "start"
        self._stderr: deque[str] = deque(maxlen=20)
        self._ended_for: Failure | None = None
        self.pid: int | None = None
        self.peak_bytes = 0
        self.memory = MemoryTrace()

    @property
    def held_back_s(self) -> float:
        """Seconds for which the process was kept off a core."""
        return 0.0 if self._held is None else self._held.seconds

    async def run(self) -> Done | Failure:
        """Run the process until it exits. Cancellation kills it."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service.worker.main", str(os.getpid()), str(self._limits.nice)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(self._job.threads, kernels=FEW_KERNELS),
            limit=_LINE_LIMIT,
            start_new_session=True,  # Ctrl-C in the terminal must reach the supervisor only
        )
        self.pid = process.pid
        kills = OomKills.read()
        with self._held_back(process.pid) as self._held:
            guard = asyncio.create_task(self._guard_while_it_runs(process))
            try:
                await asyncio.gather(self._send_job(process), self._read_events(process), self._read_log(process))
                code = await process.wait()
            finally:
                guard.cancel()
                _kill(process)
                await asyncio.shield(process.wait())
        return self._outcome(code, OomKills.read().since(kills))

    def _held_back(self, pid: int) -> AbstractContextManager[HeldWorker | None]:
        return nullcontext() if self._hold_back is None else self._hold_back.of(pid, self._job.name)

    async def _send_job(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        with contextlib.suppress(ConnectionError):  # the process may have exited already
            process.stdin.write(self._job.to_json().encode())
            await process.stdin.drain()
        process.stdin.close()

    async def _read_events(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        async for line in process.stdout:
            try:
                event = json.loads(line)
                if event["event"] in ("result", "error"):
                    self._last = event
                self._doing = _stage_of(event) or self._doing
                if event["event"] == "measure" and self._held is not None:
                    self._held.measures(event["state"] == "begin")
            except (ValueError, KeyError, TypeError):
                log.warning("worker wrote a line that is not an event: %.200r", line)
                continue
            await self._on_event(event)

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101 - a pipe was asked for
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._stderr.append(text)
            output.info("worker of %s: %s", self._job.name, text)

    async def _guard_while_it_runs(self, process: asyncio.subprocess.Process) -> None:
        with self._liveness.loop(f"limits of the worker of {self._job.name}") as loop:
            await self._guard(process, loop)

    async def _guard(self, process: asyncio.subprocess.Process, loop: Loop) -> None:
        """Kill the worker when it exceeds its deadline or its memory limit."""
        start = time.monotonic()
        starvation = Starvation(process.pid, start)
        while self._ended_for is None:
            loop.expect_within(_MEMORY_POLL_S)
            await asyncio.sleep(_MEMORY_POLL_S)
            if self._hold_back is not None:
                self._hold_back.check()
            waited_for = starvation.waits_for
            found = starvation.check(time.monotonic())
            if starvation.waits_for != waited_for:
                await self._on_event({"event": "waits", "for": starvation.waits_for})
            if found is not None and self._limits.nice:
                text = "worker of %s %s: other programs take the cores; lower worker.nice = %d to let it compete"
                log.warning(text, self._job.name, found, self._limits.nice)
            with contextlib.suppress(psutil.NoSuchProcess):
                used = psutil.Process(process.pid).memory_info().rss
                if used:  # a process that has exited and is not yet reaped has no memory
                    self.peak_bytes = max(self.peak_bytes, used)
                    self.memory.add(time.monotonic() - start, used)
            if self._limits.memory_max is not None and self.peak_bytes > self._limits.memory_max:
                used, allowed = self.peak_bytes >> 20, self._limits.memory_max >> 20
                reason = f"the worker used {used} MiB, worker.memory_max is {allowed} MiB; raise it"
                self._ended_for = Failure("memory", reason)
            elif time.monotonic() > start + self._limits.deadline_s:
                self._ended_for = Failure("timeout", self._too_slow(process.pid))
        _kill(process)

    def _too_slow(self, pid: int) -> str:
        """Return why the worker was not done in time: a worker at idle priority may have got hardly any time."""
        computed_s = 0.0
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            computed_s = times.user + times.system
        deadline_s, nice = self._limits.deadline_s, self._limits.nice
        starved = nice and computed_s < _STARVED * deadline_s
        remedy = f"other programs take the cores: lower worker.nice = {nice} or raise it" if starved else "raise it"
        text = f"not done after worker.deadline_s = {deadline_s:g} s, in which it computed for {computed_s:.1f} s"
        return f"{text}; {remedy}"

    def _outcome(self, code: int, kills: OomKills) -> Done | Failure:
        if self._ended_for is not None:
            return self._ended_for
        if self._last.get("event") == "result" and code == 0:
            return Done(self._last["totals"])
        if self._last.get("event") == "error":
            # The calibration folder can be corrected while the file waits; the file itself is not at fault.
            permanent = self._last["exit_code"] in (2, 3) and self._last["code"] != "calibration"
            return Failure(self._last["code"], self._last["message"], permanent)
        where = f"in stage {self._doing}"
        if self.memory.points:
            where += f", with {format_bytes(self.memory.points[-1][1])} in memory"
        if code == -signal.SIGKILL:
            kind, cause = cause_of_kill(kills)
            return Failure(kind, f"the worker was killed (SIGKILL) {where}; {cause}")
        if code < 0:
            return Failure("crash", f"the worker died of {signal.Signals(-code).name} {where}")
        tail = self._stderr[-1] if self._stderr else "no output"
        return Failure("crash", f"the worker ended with exit code {code} {where}: {tail[:300]}")


def cause_of_kill(kills: OomKills) -> tuple[str, str]:
    """Return the code and what is known of the cause where a worker ended by a SIGKILL that edged did not send.

    Args:
        kills: What the kernel has killed for lack of memory while the worker ran.
    """
    return "memory" if kills.may_be_memory else "crash", kills.cause


def _stage_of(event: Mapping[str, Any]) -> str | None:
    """Return the stage that an event names, with its progress; None if it names none."""
    if event["event"] == "stage" and event.get("state") == "begin":
        return str(event["stage"])
    if event["event"] == "progress" and event.get("total"):
        return f"{event['stage']} {event['done']}/{event['total']}"
    return None


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
