"""What a daemon holds after few and after many cycles: descriptors, memory segments, threads, processes, memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.daemon import PREPARES, Edged, swappable
from benchmarks.serving.processes import eventually, own_bytes_of

AT_REST = 2  # processes below the supervisor: a generation and the fork server
SLACK = 3  # of what is counted: a connection or a thread of a pool that comes and goes
MEMORY_SLACK = 0.05  # lines of the log that the supervisor keeps, up to a bound
DROP_EVERY = 50  # one of so many cycles is a new checkpoint, the others go back to the previous generation
_SEGMENT = ("/memfd:", "/dev/shm/")  # noqa: S108 - targets of descriptors
_FEW = 10  # after so many the daemon has done everything once
_SAMPLES, _APART_S = 5, 0.3


@dataclass(frozen=True)
class Held:
    """What the supervisor and its fork server hold. Of several samples the least: requests come and go.

    Attributes:
        descriptors: Open descriptors.
        segments: Those of shared memory.
        threads: Threads.
        processes: All processes below the supervisor.
        bytes: Memory of both that is not that of files.
    """

    descriptors: int
    segments: int
    threads: int
    processes: int
    bytes: int


def held(supervisor: int) -> Held:
    """Return what a supervisor and its fork server hold now."""
    samples = []
    for _ in range(_SAMPLES):
        time.sleep(_APART_S)
        samples.append(_sample(supervisor))
    return Held(**{field.name: min(getattr(sample, field.name) for sample in samples) for field in fields(Held)})


def _sample(supervisor: int) -> Held:
    root = psutil.Process(supervisor)
    children = root.children(recursive=True)
    both = [supervisor, *(child.pid for child in children if "service.inference.fork_server" in _command(child))]
    targets = [target for pid in both for target in _targets(pid)]
    return Held(
        descriptors=len(targets),
        segments=sum(target.startswith(_SEGMENT) for target in targets),
        threads=sum(psutil.Process(pid).num_threads() for pid in both),
        processes=len(children),
        bytes=own_bytes_of(both),
    )


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def _targets(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(str(entry.readlink()))
    return found


def leaks(few: Held, many: Held) -> list[str]:
    """Return what has grown between two times at which a daemon was at rest."""
    early, late = asdict(few), asdict(many)
    allowed = {name: value + SLACK for name, value in early.items()} | {"bytes": few.bytes * (1 + MEMORY_SLACK)}
    return [f"{name} grew from {early[name]} to {late[name]}" for name in early if late[name] > allowed[name]]


def run(cycles: int, altered: str = "", report: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Swap a small network as often as asked; return what was held after few and after all cycles, and what leaked.

    Args:
        cycles: Swaps; one in DROP_EVERY drops a new checkpoint, all others roll back.
        altered: Change that benchmarks/serving/altered makes; "" for none.
        report: Receives progress.
    """
    few_cycles = max(_FEW, cycles // 10)
    with swappable(altered=altered, worker=PREPARES, log={"level": "info"}) as edged:
        few = None
        for number in range(1, cycles + 1):
            edged.put_live() if number % DROP_EVERY == 0 else edged.reload()
            if number == few_cycles:
                few = _at_rest(edged, altered)
            if number % 100 == 0:
                report(f"{number} cycles")
        many = _at_rest(edged, altered)
    if few is None:
        raise ValueError(f"{cycles} cycles are too few")
    return {"cycles": cycles, "few": few_cycles, "early": asdict(few), "late": asdict(many), "leaks": leaks(few, many)}


def _at_rest(edged: Edged, altered: str) -> Held:
    if not altered:
        eventually(lambda: len(psutil.Process(edged.pid).children(recursive=True)) == AT_REST, "rest")
    return held(edged.pid)
