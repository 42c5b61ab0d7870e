"""Large bodies of requests lie in memory that the supervisor and a generation share; the socket says only where.

A socket takes some 200 kB at a time, so that 600 kB went through it in four pieces, with a wake-up and two copies for
each. Here a body is copied once, to an aligned address.

Before the bodies stands which request the generation has taken up last: that can still be read when it was killed, and
what it had not taken up another process may answer.

The memory is a nameless file that goes with its two processes. Imports no numpy.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
from bisect import insort
from io import BufferedIOBase
from typing import Any, NamedTuple

from service.ipc import frames

ARENA_BYTES = 16 << 20  # a generation; what finds no place in it goes through the socket
LEAST_BYTES = 16 << 10  # what is smaller goes through the socket as fast
# What was written to stays in memory while nothing lies there, up to this, so that the next body finds its pages: that
# of a detector takes 5 MB.
KEPT_BYTES = 8 << 20
_MFD_NOEXEC_SEAL = 8  # of <linux/memfd.h>: hardened systems refuse memory that could be executed
_ALIGNMENT = 64  # of tensors: a line of the processor's cache
_TAKEN_UP = struct.Struct("=Q")  # at the beginning of the memory
_BODIES_AT = _ALIGNMENT  # behind it
PLACE = "place"  # key of a frame's header


class Place(NamedTuple):
    """Where a body lies.

    Attributes:
        start: In bytes.
        size: Likewise.
    """

    start: int
    size: int

    @property
    def end(self) -> int:
        """Behind its last byte."""
        return self.start + self.size


class Arena:
    """The supervisor's side: gives each body a place until it is answered.

    Args:
        connection: To the generation, with nothing written to it so far; the memory is handed over through it.

    Raises:
        OSError: The system has no memory, or the other side went away.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._places: list[Place] = []  # in their order
        self._touched = 0
        descriptor = _nameless_file()
        try:
            os.ftruncate(descriptor, ARENA_BYTES)
            # Else a child could make the file shorter, and who then writes to what is missing ends by SIGBUS.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._memory = mmap.mmap(descriptor, ARENA_BYTES)
            socket.send_fds(connection, [b"\0"], [descriptor])
        finally:
            os.close(descriptor)

    def put(self, body: bytes, json_bytes: int | None) -> Place | None:
        """Copy a body; None if it goes through the socket, because it is small or there is no room.

        Args:
            body: Of the HTTP request.
            json_bytes: How much of it is JSON: what follows is aligned.
        """
        if len(body) < LEAST_BYTES:
            return None
        start = self._gap(len(body), -(json_bytes or 0) % _ALIGNMENT)
        if start is None:
            return None
        place = Place(start, len(body))
        self._memory[place.start : place.end] = body
        insort(self._places, place)
        self._touched = max(self._touched, place.end)
        return place

    def free(self, place: Place) -> None:
        """Give a place back: the body was answered, nobody reads it any more."""
        self._places.remove(place)
        if not self._places and self._touched > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE, KEPT_BYTES, self._touched - KEPT_BYTES)
            self._touched = KEPT_BYTES

    @property
    def taken_up(self) -> int:
        """The id of the request that the generation has taken up last, 0 before the first."""
        found: int = _TAKEN_UP.unpack_from(self._memory)[0]
        return found

    def close(self) -> None:
        """Give it up; the other side keeps what it has mapped."""
        self._memory.close()

    def _gap(self, size: int, shift: int) -> int | None:
        """The first free place, `shift` bytes behind an aligned one."""
        free = _BODIES_AT
        for place in self._places:
            start = _aligned(free) + shift
            if start + size <= place.start:
                return start
            free = place.end
        start = _aligned(free) + shift
        return start if start + size <= ARENA_BYTES else None


class Inbox:
    """The generation's side: reads requests.

    Args:
        stream: Where they come from.
        memory: The shared one; without it all bodies come through the stream.
    """

    def __init__(self, stream: BufferedIOBase, memory: mmap.mmap | None = None) -> None:
        self._stream = stream
        self._memory = memoryview(memory or b"")

    def read(self) -> tuple[dict[str, Any], bytes | memoryview] | None:
        """The next header and body, None at the end of the stream. The body may change once it is answered.

        Raises:
            FrameError: The frame is damaged or cut short.
        """
        frame = frames.read_blocking(self._stream)
        if frame is not None and self._memory:
            take_up(self._memory, frame[0]["id"])
        if frame is None or PLACE not in frame[0]:
            return frame
        header = frame[0]
        place = Place(*header[PLACE])
        body = self._memory[place.start : place.end]
        if len(body) != place.size:
            raise frames.FrameError(f"a body at {place}, but the shared memory has {len(self._memory)} bytes")
        # What is looked at after the answer must still be there then.
        return header, memoryview(bytearray(body)) if "observe" in header else body


def take_up(memory: mmap.mmap | memoryview, identity: int) -> None:
    """Show the supervisor that from now on the generation may have done anything with a request, and those before."""
    _TAKEN_UP.pack_into(memory, 0, identity)


def receive_memory(connection: socket.socket) -> mmap.mmap:
    """What `Arena` handed over, which is the first thing on the connection.

    Raises:
        FrameError: The supervisor went away.
    """
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if not descriptors:
        raise frames.FrameError("the supervisor went away before it handed over the memory for requests")
    try:
        return mmap.mmap(descriptors[0], ARENA_BYTES)
    finally:
        os.close(descriptors[0])


def _nameless_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("edged-requests", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("edged-requests", flags)  # before Linux 6.3


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT
