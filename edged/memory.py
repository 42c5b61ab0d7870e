"""Memory in use by this process, and ways to return free memory to the system.

On the CPU memory is counted by the system. On a CUDA device it is counted by torch's allocator, which includes the
tensors but not the driver's own memory.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from edged.device import device_name
from edged.errors import MemoryLimitError
from edged.heap import trim_heap

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def resident_bytes() -> int:
    """Return the current resident memory of this process in bytes, or 0 if the system does not report it."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes, or 0 if the system does not report it."""
    return _status("VmHWM")


def present_bytes(device: torch.device) -> int:
    """Return the current memory of the tensors on a CUDA device, or else the resident memory, in bytes."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def device_peak_bytes(device: torch.device) -> int:
    """Return the peak of `present_bytes` in this process, in bytes."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def limit_bytes(device: torch.device, asked: int | None) -> int | None:
    """Return the limit of `present_bytes` in bytes: the requested one, or on a CUDA device what is available if less.

    Args:
        device: Device of the computation.
        asked: Requested limit in bytes, None for no limit.
    """
    if device.type != "cuda":
        return asked
    free, _ = torch.cuda.mem_get_info(device)
    # Memory that the allocator keeps for reuse is available, too.
    possible = free + torch.cuda.memory_reserved(device)
    return possible if asked is None else min(asked, possible)


@contextmanager
def memory_errors_of(device: torch.device) -> Iterator[None]:
    """Turn an exhausted CUDA device inside the block into a MemoryLimitError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:  # raised for CUDA devices only; the CPU's is another
        raise MemoryLimitError(
            f"{device_name(device)} ran out of memory; give a lower memory limit than the"
            f" {device_peak_bytes(device) >> 20} MiB that were in use, free its memory or choose device cpu"
        ) from error


def give_back_free_memory() -> None:
    """Return the memory that the C library and CUDA's allocator keep for reuse to the system, where possible."""
    trim_heap()
    torch.cuda.empty_cache()  # does nothing if CUDA is not in use


def give_back_blocks_of(size: int) -> None:
    """Return each block of at least `size` bytes to the system as soon as it is freed, from now on.

    By default the C library does so above 32 MB. With a lower size the process takes hardly more memory than is in
    use. But new pages cost time: for blocks that are allocated in every batch, as much as the work on them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)


def apart(value: Tensor) -> Tensor:
    """Copy a dense tensor, on the CPU to pages of its own, which return to the system when the copy is released.

    This is for long-lived tensors among many short-lived ones, because in the heap they would fragment the free space.
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
