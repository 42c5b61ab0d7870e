"""How much memory this process has in use, as the system counts it, and how to have no more than is needed."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch
from torch import Tensor


def resident_bytes() -> int:
    """Resident memory now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Largest resident memory that the process ever had; 0 where the system does not tell."""
    return _status("VmHWM")


def give_back_free_memory() -> None:
    """Return what the C library keeps for later to the system, where it can be asked to.

    It keeps freed blocks that lie between used ones: after many batches of changing size, more than is in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def apart(value: Tensor) -> Tensor:
    """A copy of a dense tensor in pages of its own, which go back to the system as soon as it is dropped.

    For what lives long among much that does not: in the heap it would hold the space around it.

    Args:
        value: On the CPU.
    """
    if not value.numel():
        return value.clone()
    pages = mmap.mmap(-1, value.nbytes)
    copy = torch.frombuffer(pages, dtype=value.dtype).as_strided(value.shape, value.stride())
    return copy.copy_(value)


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024  # "VmRSS:   1234 kB"
    return 0
