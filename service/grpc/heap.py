"""The heap of this process: what is freed is kept for the next message, and returned after a quiet while."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes

# glibc maps each message of 600 kB anew and unmaps it, which takes longer than to parse it: 0.5 ms, then 0.05.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT_BYTES, _MAPPED_BYTES = 16 << 20, 8 << 20
_LARGE_BYTES = 1 << 20  # what smaller messages leave is little
_QUIET_S = 2.0  # after the last large message


class Heap:
    """Decides when freed memory is returned to the system.

    gRPC receives a message in many small pieces, which leave holes between what is still used. Only malloc_trim returns
    them, which takes milliseconds.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._timer: asyncio.TimerHandle | None = None

    def keep_freed_memory(self) -> None:
        """Keep freed memory for the next message."""
        with contextlib.suppress(AttributeError):  # a C library without mallopt
            self._library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
            self._library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)

    def note_message(self, size: int) -> None:
        """Have the memory returned in a while, after a large message.

        Args:
            size: Length of the message in bytes.
        """
        if size < _LARGE_BYTES:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_QUIET_S, self._trim)

    def _trim(self) -> None:
        self._timer = None
        with contextlib.suppress(AttributeError):  # a C library without malloc_trim
            self._library.malloc_trim(0)
