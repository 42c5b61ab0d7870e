"""Memory that this process takes to read one input, and its limit."""

from __future__ import annotations

import resource
from pathlib import Path

_MAX_DATA_BYTES = 4 << 30


def limit() -> None:
    """Let allocations beyond 4 GiB fail, before the machine suffers."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES, _MAX_DATA_BYTES))


def restart_peak() -> int:
    """Let the peak start at the memory that is in use now, and return that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def beyond(before: int) -> int:
    """Return how much more than `before` the peak is, in bytes."""
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) << 10
