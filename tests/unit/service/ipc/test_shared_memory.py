"""Memory shared by the supervisor and its generations: a body can be read until it is released."""

from __future__ import annotations

import asyncio
import io
import mmap
import os
import socket
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.ipc import frames
from service.ipc import shared_memory as module
from service.ipc.shared_memory import (
    KEPT_BYTES,
    LEAST_BYTES,
    PLACE,
    BodyMemory,
    Inbox,
    NoRoomError,
    ReceivedMemory,
    StoredBody,
    receive_memory,
)

SMALL, SMALL_KEPT = 1 << 18, 1 << 16


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def frame_of(header: dict[str, Any], body: bytes = b"") -> io.BytesIO:
    return io.BytesIO(frames.head(header, body) + body)


def filled_bytes(memory: BodyMemory) -> int:
    """Return how many bytes of the file take memory."""
    return os.fstat(memory._descriptor).st_blocks * 512


def stored(memory: BodyMemory, content: bytes, json_bytes: int | None = None) -> StoredBody:
    body = memory.take(len(content), json_bytes)
    assert body is not None
    body.view[:] = content
    return body


class Sharing(RuleBasedStateMachine):
    """Stores, resizes and releases bodies in any order; each stored body keeps its contents."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "KEPT_BYTES", SMALL_KEPT)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.memory = BodyMemory(SMALL)
            self.started = self.memory.send_to(ours)
            self.child = receive_memory(theirs)
        self.bodies: dict[StoredBody, bytes] = {}
        self.count = 0

    def content(self, size: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(2, "big") * (size // 2) + b"x" * (size % 2)

    @rule(size=st.integers(0, SMALL + 1), json_bytes=st.one_of(st.none(), st.integers(0, 10**18)))
    def store(self, size: int, json_bytes: int | None) -> None:
        body = self.memory.take(size, json_bytes)
        used = sum(map(len, self.bodies))
        assert body is None if used + size > SMALL else body is not None or self.bodies
        if body is not None:
            assert (body.place.start + (json_bytes or 0)) % 64 == 0
            assert len(body) == size
            body.view[:] = self.bodies[body] = self.content(size)

    @precondition(lambda self: self.bodies)
    @rule(data=st.data(), size=st.integers(0, SMALL + 1))
    def resize(self, data: st.DataObject, size: int) -> None:
        body = data.draw(st.sampled_from(list(self.bodies)))
        before = self.bodies[body]
        try:
            body.resize(size)
        except NoRoomError:
            assert len(body) == len(before)
            return
        assert body.view[: len(before)] == before[:size]
        body.view[:] = self.bodies[body] = self.content(size)

    @precondition(lambda self: self.bodies)
    @rule(data=st.data(), holders=st.integers(1, 2))
    def release(self, data: st.DataObject, holders: int) -> None:
        body = data.draw(st.sampled_from(list(self.bodies)))
        for _ in range(holders - 1):
            body.hold()
        for _ in range(holders):
            assert self.child.bodies[body.place.start : body.place.end] == self.bodies[body]
            body.release()
        del self.bodies[body]

    @invariant()
    def all_are_as_they_were_stored(self) -> None:
        for body, content in self.bodies.items():
            assert self.child.bodies[body.place.start : body.place.end] == content
        ordered = sorted(body.place for body in self.bodies)
        assert all(before.end <= after.start for before, after in pairwise(ordered))
        assert self.memory.used == sum(map(len, self.bodies)) <= SMALL

    @invariant()
    def memory_goes_back(self) -> None:
        if not self.bodies:
            assert filled_bytes(self.memory) <= SMALL_KEPT

    def teardown(self) -> None:
        self.memory.close()
        self.started.close()
        self.child.close()
        self.patch.undo()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_the_memory_of_a_large_body_is_released() -> None:
    memory = BodyMemory(16 << 20)
    assert filled_bytes(memory) == 0
    small, large = stored(memory, b"y" * LEAST_BYTES), stored(memory, b"x" * (15 << 20))
    assert filled_bytes(memory) >= 15 << 20
    assert memory.take(2 << 20) is None
    large.release()
    assert 0 < filled_bytes(memory) <= KEPT_BYTES  # though there is a body left
    small.release()
    memory.close()


def test_whoever_waits_gets_a_place_as_soon_as_there_is_one() -> None:
    async def main() -> None:
        memory = BodyMemory(100)
        first = await memory.reserve(90, None, 5)
        large, small = (asyncio.create_task(memory.reserve(size, None, 30)) for size in (60, 30))
        late = asyncio.create_task(memory.reserve(50, None, 0.01))
        with pytest.raises(NoRoomError):
            await late
        cancelled = asyncio.create_task(memory.reserve(10, None, 30))
        assert len(await cancelled) == 10  # smaller ones need not wait for larger ones
        assert not large.done()
        assert not small.done()
        first.release()
        assert [len(await each) for each in (large, small)] == [60, 30]
        given_up = asyncio.create_task(memory.reserve(50, None, 30))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        for each in (large, small, cancelled):
            each.result().release()
        assert memory.used == 0
        memory.close()

    asyncio.run(main())


def test_a_place_that_is_given_to_a_cancelled_waiter_is_free_again() -> None:
    async def main() -> None:
        memory = BodyMemory(100)
        first = await memory.reserve(90, None, 5)
        waiter = asyncio.create_task(memory.reserve(50, None, 30))
        await asyncio.sleep(0)
        first.release()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert memory.used == 0
        memory.close()

    asyncio.run(main())


def test_a_small_body_in_the_heap_is_not_copied_to_the_memory() -> None:
    memory = BodyMemory(1 << 20)
    assert memory.put(b"x" * (LEAST_BYTES - 1), None) is None
    body = memory.put(b"x" * LEAST_BYTES, 5)
    assert body is not None
    assert bytes(body.view) == b"x" * LEAST_BYTES
    body.release()
    memory.close()


def test_a_body_can_be_released_after_the_memory_is_gone() -> None:
    memory = BodyMemory(1 << 20)
    body = stored(memory, b"late")
    memory.close()
    body.release()


def test_the_peer_can_neither_resize_nor_write_the_memory(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    memory = BodyMemory()
    memory.send_to(ours).close()
    _, descriptors, _, _ = socket.recv_fds(theirs, 1, 2)
    for descriptor in descriptors:
        for size in (0, 1 << 30):
            with pytest.raises((PermissionError, OSError)):
                os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptors[1], 0)
    for descriptor in descriptors:
        os.close(descriptor)
    memory.close()


def test_no_descriptor_stays_open(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - numbers, no paths
    memory = BodyMemory()
    started, received = memory.send_to(ours), receive_memory(theirs)
    for each in (memory, started, received):
        each.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_a_body_is_read_in_place(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    memory = BodyMemory()
    memory.send_to(ours)
    content = bytes(range(256)) * 256
    body = stored(memory, content, 5)
    inbox = Inbox(frame_of({"id": 7, PLACE: body.place}), receive_memory(theirs))
    frame = inbox.read()
    assert frame is not None
    header, read = frame
    assert header["id"] == 7
    assert isinstance(read, memoryview)
    assert (bytes(read), read.readonly) == (content, True)
    assert inbox.read() is None
    memory.close()


def test_the_last_started_request_is_known_after_the_peer_exited(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    memory = BodyMemory()
    started, received = memory.send_to(ours), receive_memory(theirs)
    place = stored(memory, b"x" * LEAST_BYTES).place
    assert started.last_started == 0
    sent = frame_of({"id": 7}, b"small").getvalue() + frame_of({"id": 1 << 40, PLACE: place}).getvalue()
    inbox = Inbox(io.BytesIO(sent), received)
    for identity in (7, 1 << 40):
        inbox.read()
        assert started.last_started == identity
    assert inbox.read() is None
    theirs.close()
    assert started.last_started == 1 << 40
    memory.close()


def test_the_body_of_a_sampled_request_outlives_its_reply(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    memory = BodyMemory()
    memory.send_to(ours)
    received = receive_memory(theirs)
    read = {}
    body = stored(memory, b"1" * LEAST_BYTES)
    for key, told in (("plain", {}), ("observed", {"observe": {"drift": True}})):
        frame = Inbox(frame_of({"id": 1, PLACE: body.place, **told}), received).read()
        assert frame is not None
        read[key] = frame[1]
    body.release()
    assert stored(memory, b"2" * LEAST_BYTES).place == body.place
    assert {key: bytes(content[:1]) for key, content in read.items()} == {"plain": b"2", "observed": b"1"}
    memory.close()


def test_bodies_in_the_frame_are_read_without_shared_memory() -> None:
    inbox = Inbox(frame_of({"id": 1}, b"body"))
    assert inbox.read() == ({"id": 1, "body_bytes": 4}, b"body")
    assert inbox.read() is None


@pytest.mark.parametrize("place", [(0, 1), (1 << 30, 1), ((64 << 20) + (1 << 20) - 1, 2)])
def test_a_place_outside_of_the_memory_is_an_error(
    place: tuple[int, int], pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    memory = BodyMemory()
    memory.send_to(ours)
    received: ReceivedMemory | None = receive_memory(theirs) if place[0] else None
    with pytest.raises(frames.FrameError, match="shared memory has"):
        Inbox(frame_of({"id": 1, PLACE: place}), received).read()
    memory.close()


def test_a_closed_connection_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    with pytest.raises(frames.FrameError, match="closed the connection"):
        receive_memory(theirs)
