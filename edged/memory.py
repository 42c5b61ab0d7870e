"""How much memory this process has in use, as the system counts it."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Resident memory now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Largest resident memory that the process ever had; 0 where the system does not tell."""
    return _status("VmHWM")


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024  # "VmRSS:   1234 kB"
    return 0
