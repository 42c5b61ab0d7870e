"""The cores that the threads of another process may use, and which core is worth the most. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from service.system.hardware import ROOT

# Capacity of a core relative to the fastest one, where cores differ; else its highest frequency.
_SPEEDS = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")


def confine(pid: int, cores: Iterable[int]) -> None:
    """Let all threads of a process run on some cores only, also those that it starts later.

    Nothing happens if the process has ended.

    Args:
        pid: Process ID.
        cores: Numbers of the cores.

    Raises:
        OSError: A sandbox forbids it, or this process may not use any of the cores itself.
    """
    wanted, done = set(cores), set[str]()
    # A thread inherits the cores of the one that starts it, so those that were started meanwhile are listed again.
    while fresh := _threads(pid) - done:
        for thread in fresh:
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread), wanted)
        done |= fresh


def _threads(pid: int) -> set[str]:
    try:
        return {thread.name for thread in Path(f"/proc/{pid}/task").iterdir()}
    except (FileNotFoundError, ProcessLookupError):
        return set()


def fastest_core(cores: Iterable[int], root: Path = ROOT) -> int:
    """Return the core that computes fastest, the first of equal ones.

    Args:
        cores: Numbers of the cores to choose from; at least one.
        root: Folder that holds /sys.
    """
    return max(sorted(cores), key=lambda core: _speed(root / f"sys/devices/system/cpu/cpu{core}"))


def _speed(folder: Path) -> tuple[int, ...]:
    found = []
    for name in _SPEEDS:
        try:
            found.append(int((folder / name).read_text()))
        except (OSError, ValueError):
            found.append(0)
    return tuple(found)
