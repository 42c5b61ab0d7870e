"""Whether a worker waits for a core nearly all the time, because other programs take them. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from service.system.hardware import ROOT

WINDOW_S = 60.0
LEAST_SHARE = 0.05  # of the time in which it could have run
_STATE, _USER, _SYSTEM = 0, 11, 12  # of /proc/PID/stat, counted from the field after the name
_TICKS = os.sysconf("SC_CLK_TCK")


class Starvation:
    """Compares how long a process ran with how long it was ready to run.

    Args:
        pid: Process ID.
        now: Monotonic seconds.
        root: Folder that holds /proc.
    """

    def __init__(self, pid: int, now: float, root: Path = ROOT) -> None:
        self._file = root / f"proc/{pid}/stat"
        self._since = self._seen = now
        self._ran_before = self._ready = 0.0
        self._found = False

    def check(self, now: float) -> str | None:
        """Return what was found, once, at the end of the first minute in which the process was starved.

        Args:
            now: Monotonic seconds. Call it several times a second.
        """
        passed, self._seen = now - self._seen, now
        try:
            fields = self._file.read_text().rpartition(")")[2].split()
            ran = (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS  # by all threads
        except (OSError, ValueError, IndexError):  # it has ended
            return None
        self._ready += passed if fields[_STATE] == "R" else 0.0
        if self._found or now - self._since < WINDOW_S:
            return None
        seconds, used, ready = now - self._since, ran - self._ran_before, self._ready
        self._since, self._ran_before, self._ready = now, ran, 0.0
        self._found = used < LEAST_SHARE * ready
        return f"ran for {used:.1f} of {seconds:.0f} s, and waited for a core otherwise" if self._found else None
