"""Memory shared by the supervisor and a generation for large request bodies; the socket carries only their location.

A socket buffer takes about 200 kB, so a body of 600 kB passed through it in four pieces, with a wake-up and two copies
for each. Here a body is copied once, to an aligned address.

The memory begins with the id of the request that the generation started last. The supervisor can still read it after
the generation was killed: requests with higher ids were not started, and another process may answer them.

The memory is an anonymous file (memfd), which disappears with its two processes. Imports no numpy.
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

ARENA_BYTES = 16 << 20  # per generation; bodies that do not fit are sent through the socket
LEAST_BYTES = 16 << 10  # for smaller bodies the socket is as fast
# Pages up to this size stay allocated while the arena is empty, so that the next body need not allocate them again. A
# request to a detector takes 5 MB.
KEPT_BYTES = 8 << 20
_MFD_NOEXEC_SEAL = 8  # from <linux/memfd.h>: hardened systems refuse executable memory
_ALIGNMENT = 64  # of tensors in bytes: one cache line
_LAST_STARTED = struct.Struct("=Q")  # at the beginning of the memory
_BODIES_AT = _ALIGNMENT  # after it
PLACE = "place"  # key of a frame's header


class Place(NamedTuple):
    """Location of a body in the shared memory.

    Attributes:
        start: Offset of its first byte.
        size: Length in bytes.
    """

    start: int
    size: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.start + self.size


class Arena:
    """The supervisor's side: allocates a place for each body until the request is answered.

    Args:
        connection: Socket to the generation; the memory is sent through it before anything else.

    Raises:
        OSError: The system is out of memory, or the generation closed its end.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._places: list[Place] = []  # in ascending order
        self._touched = 0
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, ARENA_BYTES)
            # A child could otherwise truncate the file, and a write beyond its end kills the process with SIGBUS.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._memory = mmap.mmap(descriptor, ARENA_BYTES)
            socket.send_fds(connection, [b"\0"], [descriptor])
        finally:
            os.close(descriptor)

    def put(self, body: bytes, json_bytes: int | None) -> Place | None:
        """Copy a body to the shared memory.

        Args:
            body: Body of the HTTP request.
            json_bytes: Length of its JSON in bytes; the tensor that follows is aligned.

        Returns:
            Its place; None if it is to be sent through the socket because it is small or there is no room.
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
        """Release the place of a body that the generation no longer reads, because its request was answered."""
        self._places.remove(place)
        if not self._places and self._touched > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE, KEPT_BYTES, self._touched - KEPT_BYTES)
            self._touched = KEPT_BYTES

    @property
    def last_started(self) -> int:
        """The id of the request that the generation started last; 0 before the first."""
        found: int = _LAST_STARTED.unpack_from(self._memory)[0]
        return found

    def close(self) -> None:
        """Unmap the memory; the generation keeps its own mapping."""
        self._memory.close()

    def _gap(self, size: int, shift: int) -> int | None:
        """Return the first offset with `size` free bytes that is `shift` bytes after an aligned one."""
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
        stream: Stream from the supervisor.
        memory: Memory shared with the supervisor; None if all bodies are sent through the stream.
    """

    def __init__(self, stream: BufferedIOBase, memory: mmap.mmap | None = None) -> None:
        self._stream = stream
        self._memory = memoryview(memory or b"")

    def read(self) -> tuple[dict[str, Any], bytes | memoryview] | None:
        """Read the next header and body; return None at the end of the stream.

        The body is valid until the request is answered.

        Raises:
            FrameError: The frame is damaged or cut short.
        """
        frame = frames.read_blocking(self._stream)
        if frame is not None and self._memory:
            record_started(self._memory, frame[0]["id"])
        if frame is None or PLACE not in frame[0]:
            return frame
        header = frame[0]
        place = Place(*header[PLACE])
        body = self._memory[place.start : place.end]
        if len(body) != place.size:
            raise frames.FrameError(f"a body is at {place}, but the shared memory has {len(self._memory)} bytes")
        # The body of a sampled request is still needed after its reply, so it is copied.
        return header, memoryview(bytearray(body)) if "observe" in header else body


def record_started(memory: mmap.mmap | memoryview, identity: int) -> None:
    """Record that the generation has started a request, so the supervisor must not repeat it or any before it."""
    _LAST_STARTED.pack_into(memory, 0, identity)


def receive_memory(connection: socket.socket) -> mmap.mmap:
    """Receive the memory that `Arena` sends first on a connection.

    Raises:
        FrameError: The supervisor closed the connection.
    """
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if not descriptors:
        raise frames.FrameError("the supervisor closed the connection before it sent the memory for requests")
    try:
        return mmap.mmap(descriptors[0], ARENA_BYTES)
    finally:
        os.close(descriptors[0])


def _anonymous_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("edged-requests", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("edged-requests", flags)  # before Linux 6.3


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT
