"""How much memory this process has in use, as the system counts it, and how to have no more than is needed."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch
from torch import Tensor

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


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


def give_back_blocks_of(size: int) -> None:
    """From now on return each block of at least `size` bytes to the system as soon as it is free.

    The C library does so above 32 MB of its own accord. Lower, the process holds hardly more than what is in use; but
    fresh pages cost time, for blocks that come and go in every batch as much as the work on them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)


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
