"""`python -m service.worker.main PARENT NICE < JOB`: quantize one checkpoint. The only parser of untrusted files.

Reports on stdout, one JSON object per line:
    {"event": "sandbox", "lacking": {"files": "the kernel has no Landlock"}}
    {"event": "stage", "stage": "load", "state": "begin"}
    {"event": "stage", "stage": "load", "state": "end", "seconds": 0.2}
    {"event": "progress", "stage": "load", "done": 3, "total": 21}
    {"event": "plan", "peak_bytes": 900000000, ...}
    {"event": "measure", "state": "begin"}                  times of engines; "end" when that is done
    {"event": "result", "totals": {...}, "out": "..."}
    {"event": "error", "code": "checkpoint", "message": "...", "exit_code": 3}
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from edged.errors import EdgedError, MemoryLimitError, StateError
from service.system.pillow_warnings import ignore_warnings_of_pillow
from service.system.processes import die_with_parent, lower_priority
from service.worker.job import Job
from service.worker.sandbox import enter

if TYPE_CHECKING:  # torch, which is imported only when the job runs
    from edged.pipeline.quantize import QuantizationResult
    from edged.pipeline.timing import Rest

_PROGRESS_INTERVAL_S = 0.2  # faster than a person can read is wasted
_REST = 3  # times the duration of a measured run, for which requests have the cores afterwards
_ALL_CORES_S, _LOOK_S = 2.0, 0.002  # longest wait for the supervisor to give all cores, and between two looks


class LineListener:
    """A progress listener that writes JSON lines."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._stages: list[str] = []
        self._next_progress = 0.0

    def send(self, event: str, **fields: Any) -> None:
        """Write an event as one line."""
        self._output.write(json.dumps({"event": event, **fields}) + "\n")
        self._output.flush()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report the beginning of a stage, and its end if it succeeds."""
        self.send("stage", stage=name, state="begin")
        self._stages.append(name)
        start = time.monotonic()
        try:
            yield
        finally:
            self._stages.pop()
        self.send("stage", stage=name, state="end", seconds=time.monotonic() - start)

    def progress(self, done: int, total: int) -> None:
        """Report the progress of the current stage, a few times a second."""
        now = time.monotonic()
        if now >= self._next_progress or done == total:
            self._next_progress = now + _PROGRESS_INTERVAL_S
            self.send("progress", stage=self._stages[-1] if self._stages else "", done=done, total=total)

    @contextmanager
    def measuring(self, cores: int) -> Iterator[Rest]:
        """Report that times are measured inside the block, and wait until this process may use all its cores.

        Args:
            cores: Number of the cores.

        Yields:
            A function to call after each run. If requests arrive, it leaves the cores to them for most of the time.
        """
        held_back = len(os.sched_getaffinity(0)) < cores
        self.send("measure", state="begin")
        end = time.monotonic() + _ALL_CORES_S
        while len(os.sched_getaffinity(0)) < cores and time.monotonic() < end:
            time.sleep(_LOOK_S)
        try:
            yield (lambda seconds: time.sleep(_REST * seconds)) if held_back else lambda _: None
        finally:
            self.send("measure", state="end")

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Report the memory plan."""
        self.send("plan", **plan)


def main(arguments: list[str]) -> int:
    """Run the job given on stdin and return the exit code."""
    parent, nice = (int(argument) for argument in arguments)
    die_with_parent(parent)
    lower_priority(nice)
    ignore_warnings_of_pillow()
    # Output of libraries must not mix with the lines, so it goes to stderr.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    listener = LineListener(output)
    try:
        job = Job.from_json(sys.stdin.read())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # it may have been a socket
        parts = enter(job)
        listener.send("sandbox", lacking={part.name: part.lacking for part in parts if part.lacking is not None})
        result = _run(job, listener)
    except EdgedError as error:
        listener.send("error", code=error.code, message=str(error), exit_code=error.exit_code)
        return error.exit_code
    listener.send("result", out=str(result.artifact), totals=result.report["totals"])
    return 0


def _run(job: Job, listener: LineListener) -> QuantizationResult:
    """Call `run_job` and convert the errors of the machine and of libraries to EdgedErrors."""
    # Importing torch takes half a second: only now, after stdout is redirected.
    from service.worker.pipeline import run_job

    try:
        if job.held_back and job.threads is not None:
            return run_job(job, listener, partial(listener.measuring, job.threads))
        return run_job(job, listener)
    except EdgedError:
        raise
    except MemoryError as error:
        raise MemoryLimitError("ran out of memory; raise worker.memory_max or free memory on the device") from error
    except OSError as error:
        raise StateError(f"cannot read or write {error.filename or job.out}: {error.strerror or error}") from error
    except Exception as error:
        # torch says "DefaultCPUAllocator: can't allocate memory" as a plain RuntimeError
        if "allocate memory" in str(error):
            raise MemoryLimitError("ran out of memory; raise worker.memory_max or free memory on the device") from error
        traceback.print_exc()
        raise EdgedError(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(exit_code)  # an orderly exit would only spend time on unloading torch
