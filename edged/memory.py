"""How much memory this process has in use, as the system counts it, and how to have no more than is needed.

On a CUDA device torch's allocator counts: what its tensors take, without what the driver needs for itself.
"""

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


def present_bytes(device: torch.device) -> int:
    """What the work's tensors take on a CUDA device now, else resident memory."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def device_peak_bytes(device: torch.device) -> int:
    """The most that `present_bytes` ever was in this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def limit_bytes(device: torch.device, asked: int | None) -> int | None:
    """The most that `present_bytes` may become: what was asked for, on a CUDA device no more than can be had.

    Args:
        device: Where the work is done.
        asked: Bytes, None for no limit.
    """
    if device.type != "cuda":
        return asked
    free, _ = torch.cuda.mem_get_info(device)
    # What the allocator keeps for later can be had, too.
    possible = free + torch.cuda.memory_reserved(device)
    return possible if asked is None else min(asked, possible)


def give_back_free_memory() -> None:
    """Return what the C library and CUDA's allocator keep for later to the system, where they can be asked to.

    The C library keeps freed blocks that lie between used ones: after many batches of changing size, more than is in
    use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    torch.cuda.empty_cache()  # nothing is done where CUDA is not in use


def give_back_blocks_of(size: int) -> None:
    """From now on return each block of at least `size` bytes to the system as soon as it is free.

    The C library does so above 32 MB of its own accord. Lower, the process holds hardly more than what is in use; but
    fresh pages cost time, for blocks that come and go in every batch as much as the work on them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)


def apart(value: Tensor) -> Tensor:
    """A copy of a dense tensor; on the CPU in pages of its own, which go back to the system as soon as it is dropped.

    For what lives long among much that does not: in the heap it would hold the space around it.
    """
    if not value.numel() or value.device.type != "cpu":
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
