"""What a test wants to know of another process."""

from __future__ import annotations

from collections.abc import Callable

import psutil

_BUSY_S = 0.05  # of a core: more than it takes to look for work


def busy(pid: int) -> Callable[[], bool]:
    """Tells whether a process has computed since this was called."""
    process = psutil.Process(pid)
    before = process.cpu_times().user
    return lambda: process.cpu_times().user - before > _BUSY_S
