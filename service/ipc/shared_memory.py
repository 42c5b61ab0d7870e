"""Memory shared by the supervisor and its generations for the bodies of requests; sockets carry only their location.

A body is received straight into it, at an aligned address, and read there by whichever generation answers: it is never
copied. Its size bounds what all bodies together take, those that are still arriving included.

Each generation has a few bytes of its own besides: the id of the request that it started last. The supervisor can still
read it after the generation was killed: requests with higher ids were not started, and another process may answer them.

Both are anonymous files (memfd), which disappear with their processes. Imports no numpy.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import mmap
import os
import socket
import struct
from bisect import bisect_left, insort
from io import BufferedIOBase
from typing import Any, NamedTuple, Union

from service.ipc import frames

DEFAULT_BYTES = 64 << 20
LEAST_BYTES = 16 << 10  # a smaller body that is in the heap already goes through the socket, which is as fast
# Pages up to this size stay allocated while they hold no body, so that the next one need not allocate them again. A
# request to a detector takes 5 MB.
KEPT_BYTES = 8 << 20
_SLACK_BYTES = 1 << 20  # more than pages and alignment take
_RELEASED_AT_ONCE = 1 << 20  # less is not worth the call
_MFD_NOEXEC_SEAL = 8  # from <linux/memfd.h>: hardened systems refuse executable memory
_ALIGNMENT = 64  # of tensors in bytes: one cache line
_LAST_STARTED = struct.Struct("=Q")
PLACE = "place"  # key of a frame's header


class NoRoomError(Exception):
    """There is no room for a body, and none became free in time."""


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


class StoredBody:
    """A body in the shared memory. It stays there until everyone who holds it has released it.

    Args:
        memory: Memory that it is in.
        place: Its place.
        json_bytes: Length of its JSON in bytes; the tensor that follows is aligned.

    Attributes:
        place: Its place; the size is that of the body, or its capacity while it arrives.
    """

    def __init__(self, memory: BodyMemory, place: Place, json_bytes: int | None) -> None:
        self.place = place
        self._memory = memory
        self._json_bytes = json_bytes
        self._holders = 1

    def __len__(self) -> int:
        """Return the length in bytes."""
        return self.place.size

    @property
    def view(self) -> memoryview:
        """The bytes; valid until the body is released."""
        return self._memory.view(self.place)

    def hold(self) -> StoredBody:
        """Keep the body until one more `release`."""
        self._holders += 1
        return self

    def release(self) -> None:
        """Let go of the body, which is freed if nobody else holds it."""
        self._holders -= 1
        if self._holders == 0:
            self._memory.free(self.place)

    def resize(self, size: int) -> None:
        """Change the length. The body may be moved, so that its earlier views are not valid any more.

        Raises:
            NoRoomError: There is no room.
        """
        self.place = self._memory.move(self.place, size, self._json_bytes)


RequestBody = Union[bytes, StoredBody]  # noqa: UP007 - evaluated at runtime, by Python 3.10 too


class BodyMemory:
    """The supervisor's side: places for bodies.

    Args:
        size: Bytes that all bodies may take together.

    Attributes:
        size: Bytes that all bodies may take together.
        used: Bytes that they take.

    Raises:
        OSError: The system is out of memory or of file descriptors.
    """

    def __init__(self, size: int = DEFAULT_BYTES) -> None:
        self.size = size
        self.used = 0
        self._places: list[Place] = []  # in ascending order
        self._touched = 0
        self._waiting: list[tuple[asyncio.Future[StoredBody], int, int | None]] = []  # in order of arrival
        self._end = size + _SLACK_BYTES
        self._descriptor = _sealed_file(self._end)
        self._memory = mmap.mmap(self._descriptor, self._end)
        self._bytes = memoryview(self._memory)

    def take(self, size: int, json_bytes: int | None = None) -> StoredBody | None:
        """Return a place for a body; None if there is no room now.

        Args:
            size: Length of the body in bytes.
            json_bytes: Length of its JSON in bytes; the tensor that follows is aligned.
        """
        place = self._allocate(size, json_bytes)
        return None if place is None else StoredBody(self, place, json_bytes)

    async def reserve(self, size: int, json_bytes: int | None, timeout_s: float) -> StoredBody:
        """Return a place for a body once there is one. Smaller bodies may get theirs earlier.

        Args:
            size: Length of the body in bytes.
            json_bytes: Length of its JSON in bytes; the tensor that follows is aligned.
            timeout_s: Seconds to wait.

        Raises:
            NoRoomError: There was no room in time.
        """
        if (body := self.take(size, json_bytes)) is not None:
            return body
        found: asyncio.Future[StoredBody] = asyncio.get_running_loop().create_future()
        entry = (found, size, json_bytes)
        self._waiting.append(entry)
        try:
            await asyncio.wait({found}, timeout=timeout_s)
        except BaseException:
            if found.done():
                found.result().release()
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
        if not found.done():
            raise NoRoomError
        return found.result()

    def put(self, body: bytes, json_bytes: int | None) -> StoredBody | None:
        """Copy a body to the shared memory; return None if it is small, or if there is no room."""
        if len(body) < LEAST_BYTES or (stored := self.take(len(body), json_bytes)) is None:
            return None
        stored.view[:] = body
        return stored

    def view(self, place: Place) -> memoryview:
        """Return the bytes at a place."""
        return self._bytes[place.start : place.end]

    def free(self, place: Place) -> None:
        """Release a place, and give it to whoever waits for one."""
        if self._descriptor < 0:  # closed
            return
        del self._places[bisect_left(self._places, place)]
        self.used -= place.size
        top = max(self._places[-1].end if self._places else 0, KEPT_BYTES)
        top = -(-top // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._touched - top >= _RELEASED_AT_ONCE or (not self._places and self._touched > top):
            self._memory.madvise(mmap.MADV_REMOVE, top, min(self._touched, self._end) - top)
            self._touched = top
        if self._waiting:
            self._serve_waiting()

    def move(self, place: Place, size: int, json_bytes: int | None) -> Place:
        """Change the size of a place, in place where that is possible; see `StoredBody.resize`.

        Raises:
            NoRoomError: There is no room.
        """
        at = bisect_left(self._places, place)
        limit = self._places[at + 1].start if at + 1 < len(self._places) else self._end
        if place.start + size <= limit and self.used - place.size + size <= self.size:
            self._places[at] = moved = Place(place.start, size)
            self.used += size - place.size
            self._touched = max(self._touched, moved.end)
            return moved
        found = self._allocate(size, json_bytes)
        if found is None:
            raise NoRoomError
        kept = min(size, place.size)
        self._bytes[found.start : found.start + kept] = self._bytes[place.start : place.start + kept]
        self.free(place)
        return found

    def send_to(self, connection: socket.socket) -> StartedRecord:
        """Send the memory to a generation, before anything else.

        Raises:
            OSError: The generation closed its end, or the system is out of file descriptors.
        """
        record, descriptor = StartedRecord.create()
        # A generation only reads bodies: one that runs wild cannot change those of others.
        bodies = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(connection, [b"\0"], [descriptor, bodies])
        finally:
            os.close(descriptor)
            os.close(bodies)
        return record

    def close(self) -> None:
        """Unmap the memory; generations keep their own mapping."""
        self._bytes.release()
        with contextlib.suppress(BufferError):  # somebody still has a view; it ends with the process
            self._memory.close()
        os.close(self._descriptor)
        self._descriptor = -1

    def _allocate(self, size: int, json_bytes: int | None) -> Place | None:
        if self.used + size > self.size:
            return None
        start = self._gap(size, -(json_bytes or 0) % _ALIGNMENT)
        if start is None:
            return None
        place = Place(start, size)
        insort(self._places, place)
        self.used += size
        self._touched = max(self._touched, place.end)
        return place

    def _gap(self, size: int, shift: int) -> int | None:
        """Return the first offset with `size` free bytes that is `shift` bytes after an aligned one."""
        size = max(size, 1)  # two empty bodies do not share a place
        free = 0
        for place in self._places:
            start = _aligned(free) + shift
            if start + size <= place.start:
                return start
            free = place.end + 1 if place.size == 0 else place.end
        start = _aligned(free) + shift
        return start if start + size <= self._end else None

    def _serve_waiting(self) -> None:
        for entry in list(self._waiting):
            found, size, json_bytes = entry
            if not found.done() and (body := self.take(size, json_bytes)) is not None:
                self._waiting.remove(entry)
                found.set_result(body)


class StartedRecord:
    """The supervisor's side of the few bytes that say which request a generation started last.

    Args:
        memory: The bytes.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def create(cls) -> tuple[StartedRecord, int]:
        """Return a record, and the descriptor of its file, which the caller closes.

        Raises:
            OSError: The system is out of memory or of file descriptors.
        """
        descriptor = _sealed_file(mmap.PAGESIZE)
        return cls(mmap.mmap(descriptor, mmap.PAGESIZE)), descriptor

    @property
    def last_started(self) -> int:
        """The id of the request that the generation started last; 0 before the first."""
        found: int = _LAST_STARTED.unpack_from(self._memory)[0]
        return found

    def close(self) -> None:
        """Unmap the bytes; the generation keeps its own mapping."""
        self._memory.close()


class ReceivedMemory(NamedTuple):
    """The generation's side of what `BodyMemory.send_to` sends.

    Attributes:
        started: Where it records which request it started last.
        bodies: Bodies of requests; read-only.
    """

    started: mmap.mmap
    bodies: mmap.mmap

    def close(self) -> None:
        """Unmap both."""
        self.started.close()
        self.bodies.close()


class Inbox:
    """The generation's side: reads requests.

    Args:
        stream: Stream from the supervisor.
        memory: Memory shared with the supervisor; None if all bodies are sent through the stream.
    """

    def __init__(self, stream: BufferedIOBase, memory: ReceivedMemory | None = None) -> None:
        self._stream = stream
        self._started = None if memory is None else memory.started
        self._bodies = memoryview(b"" if memory is None else memory.bodies)

    def read(self) -> tuple[dict[str, Any], bytes | memoryview] | None:
        """Read the next header and body; return None at the end of the stream.

        The body is valid until the request is answered.

        Raises:
            FrameError: The frame is damaged or cut short.
        """
        frame = frames.read_blocking(self._stream)
        if frame is not None and self._started is not None:
            record_started(self._started, frame[0]["id"])
        if frame is None or PLACE not in frame[0]:
            return frame
        header = frame[0]
        place = Place(*header[PLACE])
        body = self._bodies[place.start : place.end]
        if len(body) != place.size:
            raise frames.FrameError(f"a body is at {place}, but the shared memory has {len(self._bodies)} bytes")
        # The body of a sampled request is still needed after its reply, so it is copied.
        return header, memoryview(bytes(body)) if "observe" in header else body


def record_started(memory: mmap.mmap, identity: int) -> None:
    """Record that the generation has started a request, so the supervisor must not repeat it or any before it."""
    _LAST_STARTED.pack_into(memory, 0, identity)


def receive_memory(connection: socket.socket) -> ReceivedMemory:
    """Receive the memory that `BodyMemory.send_to` sends first on a connection.

    Raises:
        FrameError: The supervisor closed the connection.
    """
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    try:
        if len(descriptors) < 2:
            raise frames.FrameError("the supervisor closed the connection before it sent the memory for requests")
        started, bodies = descriptors
        return ReceivedMemory(mmap.mmap(started, 0), mmap.mmap(bodies, 0, prot=mmap.PROT_READ))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _sealed_file(size: int) -> int:
    """Return the descriptor of an anonymous file whose size cannot be changed any more."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create("edged-requests", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.memfd_create("edged-requests", flags)  # before Linux 6.3
    os.ftruncate(descriptor, size)
    # A child could otherwise truncate the file, and a write beyond its end kills the process with SIGBUS.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT
