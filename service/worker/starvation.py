"""What a worker waits for: a core nearly all the time, because other programs take them; the disk; or memory.

Imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from service.system.hardware import ROOT

WINDOW_S = 60.0
GLANCE_S = 5.0  # for what is shown of the worker now
LEAST_SHARE = 0.05  # of the time in which it could have run
_WAITS_SHARE = 0.6  # of a glance
_SWAPS = 20  # pages a second that had to be read from the disk again
_STATE, _MAJOR_FAULTS, _USER, _SYSTEM = 0, 9, 11, 12  # of /proc/PID/stat, counted from the field after the name
_TICKS = os.sysconf("SC_CLK_TCK")

CORE = "a core, because other programs take them"
DISK = "the disk"
MEMORY = "memory: its pages are read from the disk again"


class _Reading(NamedTuple):
    state: str
    ran: float  # seconds, by all threads
    major_faults: int


class _Span:
    """A stretch of time: how long the process was ready to run, and how long it waited for the disk."""

    def __init__(self, now: float, first: _Reading) -> None:
        self.began, self.first = now, first
        self.ready_s = self.blocked_s = 0.0

    def add(self, passed: float, state: str) -> None:
        """Count the time that has passed since the last reading."""
        self.ready_s += passed if state == "R" else 0.0
        self.blocked_s += passed if state == "D" else 0.0


class Starvation:
    """Compares how long a process ran with how long it was ready to run.

    Args:
        pid: Process ID.
        now: Monotonic seconds.
        root: Folder that holds /proc.

    Attributes:
        waits_for: What it waited for most of the last seconds; None for nothing.
    """

    def __init__(self, pid: int, now: float, root: Path = ROOT) -> None:
        self.waits_for: str | None = None
        self._file = root / f"proc/{pid}/stat"
        self._seen = now
        nothing = _Reading("", 0.0, 0)
        self._minute, self._glance = _Span(now, nothing), _Span(now, nothing)
        self._found = False

    def check(self, now: float) -> str | None:
        """Return what was found, once, at the end of the first minute in which the process was starved.

        Args:
            now: Monotonic seconds. Call it several times a second.
        """
        passed, self._seen = now - self._seen, now
        try:
            fields = self._file.read_text().rpartition(")")[2].split()
            ran = (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS
            reading = _Reading(fields[_STATE], ran, int(fields[_MAJOR_FAULTS]))
        except (OSError, ValueError, IndexError):  # it has ended
            self.waits_for = None
            return None
        for span in (self._minute, self._glance):
            span.add(passed, reading.state)
        if now - self._glance.began >= GLANCE_S:
            self.waits_for = _waits_for(self._glance, now, reading)
            self._glance = _Span(now, reading)
        if self._found or now - self._minute.began < WINDOW_S:
            return None
        minute, self._minute = self._minute, _Span(now, reading)
        seconds, used = now - minute.began, ran - minute.first.ran
        self._found = used < LEAST_SHARE * minute.ready_s
        return f"ran for {used:.1f} of {seconds:.0f} s, and waited for a core otherwise" if self._found else None


def _waits_for(span: _Span, now: float, last: _Reading) -> str | None:
    seconds = now - span.began
    if span.ready_s > _WAITS_SHARE * seconds and last.ran - span.first.ran < LEAST_SHARE * span.ready_s:
        return CORE
    if span.blocked_s > _WAITS_SHARE * seconds:
        return MEMORY if last.major_faults - span.first.major_faults > _SWAPS * seconds else DISK
    return None
