"""Memory shared by the supervisor and its generations for the bodies of requests; sockets carry only their location.

A body is received straight into it, at an aligned address, and read there by whichever generation answers: it is never
copied. What all bodies together take is bounded, those that are still arriving included. A large body has addresses for
all of it from the start, but memory only as it arrives: the file has pages only where bodies were written.

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
import sys
from bisect import bisect_left, insort
from io import BufferedIOBase
from typing import Any, NamedTuple, Union

from service.ipc import frames

DEFAULT_BYTES = 64 << 20
LEAST_BYTES = 16 << 10  # a smaller body that is in the heap already goes through the socket, which is as fast
# Pages up to this size stay allocated while they hold no body, so that the next one need not allocate them again. A
# request to a detector takes 5 MB.
KEPT_BYTES = 8 << 20
SMALL_BYTES = 1 << 20  # bodies up to this size have a share of their own, so that larger ones cannot keep them out
SHARES = 8  # that share is an eighth of the memory, and so is what a larger body gets before it has arrived
_ADDRESSES = 16  # times the memory: up to eight bodies of the largest size arrive, and there are gaps
_LEAST_ADDRESSES = 4 << 30 if sys.maxsize > 1 << 32 else 0  # so that the memory can be enlarged while bodies are there
_SLACK_BYTES = 1 << 20  # more than pages and alignment take
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
        reserved: Bytes of it that may be written; the others have addresses, but no memory yet.
        json_bytes: Length of its JSON in bytes; the tensor that follows is aligned.
        number: Of its place, in the order in which places were given.

    Attributes:
        place: Its place; the size is that of the body, or its capacity while it arrives.
        reserved: As above.
        number: As above.
    """

    def __init__(self, memory: BodyMemory, place: Place, reserved: int, json_bytes: int | None, number: int) -> None:
        self.place = place
        self.reserved = reserved
        self.number = number
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
            self._memory.free(self)

    def try_grow(self, size: int | None = None) -> bool:
        """Reserve more memory, if there is room now.

        Args:
            size: Bytes to have then; None for twice as many, up to the length of the body. If it is more than that
                length, the body may be moved, so that its earlier views are not valid any more.
        """
        return self._memory.try_grow(self, self._next_size if size is None else size, self._json_bytes)

    async def grow(self, timeout_s: float, size: int | None = None) -> None:
        """Reserve more memory once there is room; see `try_grow`.

        Args:
            timeout_s: Seconds to wait.
            size: Bytes to have then.

        Raises:
            NoRoomError: There was no room in time, or it waited for an older body that waits, too.
        """
        if not self.try_grow(size):
            size = self._next_size if size is None else size
            await self._memory.wait_to_grow(_Growth(self, size, self._json_bytes), timeout_s)

    def shrink(self, size: int) -> None:
        """Cut the body off after `size` bytes."""
        self._memory.shrink(self, size)

    @property
    def _next_size(self) -> int:
        return min(2 * self.reserved, len(self))


class _Growth(NamedTuple):
    body: StoredBody
    size: int
    json_bytes: int | None


class _Newcomer(NamedTuple):
    """A body that waits for a place; see `BodyMemory.take`."""

    size: int
    json_bytes: int | None
    is_arriving: bool


RequestBody = Union[bytes, StoredBody]  # noqa: UP007 - evaluated at runtime, by Python 3.10 too


class BodyMemory:
    """The supervisor's side: places for bodies.

    Bodies up to `SMALL_BYTES` may take an eighth more than `size`.

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
        self._count = 0  # of places that were given
        self._touched = 0  # no page after it has memory
        self._stale_bytes = 0  # released since the last sweep, from `KEPT_BYTES` on
        self._waiting: dict[asyncio.Future[StoredBody], _Newcomer] = {}  # in order of arrival
        self._growing: tuple[asyncio.Future[bool], _Growth] | None = None
        self._end = _whole_pages(max(_LEAST_ADDRESSES, _ADDRESSES * size + 2 * self._share + 2 * _SLACK_BYTES))
        self._descriptor = _sealed_file(self._end)
        self._memory = mmap.mmap(self._descriptor, self._end)
        self._bytes = memoryview(self._memory)

    @property
    def is_short(self) -> bool:
        """Whether bodies wait for room."""
        return bool(self._waiting) or self._growing is not None

    def set_size(self, size: int) -> bool:
        """Change what all bodies may take together; return whether there are addresses for it."""
        if _ADDRESSES * size + 2 * (size // SHARES) + 2 * _SLACK_BYTES > self._end:
            return False
        self.size = size
        self._serve_waiting()
        return True

    def take(self, size: int, json_bytes: int | None = None, *, arriving: bool = False) -> StoredBody | None:
        """Return a place for a body; None if there is no room now.

        Args:
            size: Length of the body in bytes.
            json_bytes: Length of its JSON in bytes; the tensor that follows is aligned.
            arriving: Whether it is still arriving: then it gets at most an eighth of the memory, and has to `grow`.
        """
        reserved = min(size, max(SMALL_BYTES, self.size // SHARES)) if arriving else size
        # A large body that came earlier, and that waits to grow, goes first.
        if not self._has_room(reserved, size) or (self._growing is not None and size > SMALL_BYTES):
            return None
        start = self._gap(size, json_bytes)
        if start is None:
            return None
        place = Place(start, size)
        insort(self._places, place)
        self.used += reserved
        self._touched = max(self._touched, place.end)
        self._count += 1
        return StoredBody(self, place, reserved, json_bytes, self._count)

    async def reserve(
        self, size: int, json_bytes: int | None, timeout_s: float, *, arriving: bool = False
    ) -> StoredBody:
        """Return a place for a body once there is one. Smaller bodies may get theirs earlier.

        Args:
            size: Length of the body in bytes.
            json_bytes: Length of its JSON in bytes; the tensor that follows is aligned.
            timeout_s: Seconds to wait.
            arriving: See `take`.

        Raises:
            NoRoomError: There was no room in time.
        """
        if (body := self.take(size, json_bytes, arriving=arriving)) is not None:
            return body
        found: asyncio.Future[StoredBody] = asyncio.get_running_loop().create_future()
        self._waiting[found] = _Newcomer(size, json_bytes, arriving)
        try:
            await asyncio.wait({found}, timeout=timeout_s)
        except BaseException:
            if found.done():
                found.result().release()
            raise
        finally:
            self._waiting.pop(found, None)
        if not found.done():
            raise self._no_room()
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

    def free(self, body: StoredBody) -> None:
        """Release the place of a body, and give it to whoever waits for one."""
        if self._descriptor < 0:  # closed
            return
        if self._growing is not None and self._growing[1].body is body:
            self._refuse_growth()
        del self._places[bisect_left(self._places, body.place)]
        self.used -= body.reserved
        self._note_free(body.place, body.reserved)
        self._serve_waiting()

    def try_grow(self, body: StoredBody, size: int, json_bytes: int | None) -> bool:
        """Reserve `size` bytes for a body, if there is room; see `StoredBody.try_grow`."""
        if not self._has_room(size - body.reserved, size):
            return False
        if size > len(body):
            place = self._extended(body.place, size, json_bytes)
            if place is None:
                return False
            body.place = place
        self.used += size - body.reserved
        body.reserved = size
        return True

    async def wait_to_grow(self, growth: _Growth, timeout_s: float) -> None:
        """Wait until a body has grown; see `StoredBody.grow`.

        Only the oldest body waits: others would hold the room that it waits for.
        """
        if self._growing is not None:
            if self._growing[1].body.number < growth.body.number:
                raise self._no_room()
            self._refuse_growth()
        found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._growing = (found, growth)
        try:
            await asyncio.wait({found}, timeout=timeout_s)
        finally:
            if self._growing is not None and self._growing[0] is found:
                self._growing = None
        if not (found.done() and found.result()):
            raise self._no_room()

    def shrink(self, body: StoredBody, size: int) -> None:
        """Cut a body off after `size` bytes."""
        left = Place(body.place.start + size, len(body) - size)
        self._places[bisect_left(self._places, body.place)] = body.place = Place(body.place.start, size)
        self.used -= body.reserved - size
        self._note_free(left, body.reserved - size)
        body.reserved = size
        self._serve_waiting()

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

    @property
    def _share(self) -> int:
        return self.size // SHARES

    @property
    def _large_end(self) -> int:
        """End of the addresses of large bodies, which leave some to small ones."""
        return self._end - 2 * self._share - _SLACK_BYTES

    def _has_room(self, more: int, size: int) -> bool:
        """Return whether a body of `size` bytes may take `more` bytes."""
        return self.used + more <= self.size + (self._share if size <= SMALL_BYTES else 0)

    def _no_room(self) -> NoRoomError:
        return NoRoomError(f"the bodies of other requests take serve.max_arriving_bytes = {self.size}; try again later")

    def _gap(self, size: int, json_bytes: int | None) -> int | None:
        """Return the first offset with `size` free bytes at which the tensor after the JSON is aligned."""
        end = self._end if size <= SMALL_BYTES else self._large_end
        shift = -(json_bytes or 0) % _ALIGNMENT
        size = max(size, 1)  # two empty bodies do not share a place
        free = 0
        for place in self._places:
            start = _aligned(free) + shift
            if start + size <= place.start:
                break
            free = place.end + 1 if place.size == 0 else place.end
        start = _aligned(free) + shift
        return start if start + size <= end else None

    def _extended(self, place: Place, size: int, json_bytes: int | None) -> Place | None:
        """Return a longer place with the bytes of another one, which is where that was if possible."""
        at = bisect_left(self._places, place)
        limit = self._places[at + 1].start if at + 1 < len(self._places) else self._large_end
        if place.start + size <= limit:
            self._places[at] = found = Place(place.start, size)
        else:
            start = self._gap(size, json_bytes)
            if start is None:
                return None
            found = Place(start, size)
            self._bytes[start : start + place.size] = self.view(place)
            del self._places[at]
            insort(self._places, found)
            self._note_free(place, place.size)
        self._touched = max(self._touched, found.end)
        return found

    def _note_free(self, place: Place, size: int) -> None:
        """Note that a place of which up to `size` bytes were written is free. Sweep now and then."""
        if place.end > KEPT_BYTES:
            self._stale_bytes += size
        if self._stale_bytes > (KEPT_BYTES if self._places else 0):
            self._sweep()

    def _sweep(self) -> None:
        """Give all pages without a body back to the system, but for those up to `KEPT_BYTES`."""
        free = KEPT_BYTES
        for place in self._places:
            self._discard(free, place.start)
            free = max(free, place.end)
        self._discard(free, _whole_pages(self._touched))
        self._touched = max(free, KEPT_BYTES)
        self._stale_bytes = 0

    def _discard(self, start: int, end: int) -> None:
        start, end = _whole_pages(start), end // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            self._memory.madvise(mmap.MADV_REMOVE, start, end - start)

    def _refuse_growth(self) -> None:
        """Tell the body that waits to grow, if there is one, that it cannot."""
        growing, self._growing = self._growing, None
        if growing is not None and not growing[0].done():
            growing[0].set_result(False)

    def _serve_waiting(self) -> None:
        if self._growing is not None:
            found, growth = self._growing
            if not found.done() and self.try_grow(*growth):
                found.set_result(True)
                self._growing = None
        for newcomer, (size, json_bytes, arriving) in list(self._waiting.items()):
            if not newcomer.done() and (body := self.take(size, json_bytes, arriving=arriving)) is not None:
                del self._waiting[newcomer]
                newcomer.set_result(body)


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


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
