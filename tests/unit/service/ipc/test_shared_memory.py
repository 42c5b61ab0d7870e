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

SMALL, SMALL_KEPT, SMALL_SMALL = 1 << 18, 1 << 16, 1 << 14


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def frame_of(header: dict[str, Any], body: bytes = b"") -> io.BytesIO:
    return io.BytesIO(frames.head(header, body) + body)


MIB = 1 << 20
WAIT_S = 30.0


def filled_bytes(memory: BodyMemory) -> int:
    """Return how many bytes of the file take memory."""
    return os.fstat(memory._descriptor).st_blocks * 512


def stored(memory: BodyMemory, content: bytes, json_bytes: int | None = None) -> StoredBody:
    body = memory.take(len(content), json_bytes)
    assert body is not None
    body.view[:] = content
    return body


def most(size: int) -> int:
    """Return how many bytes all bodies may take together, if one of `size` bytes is the last."""
    return SMALL + SMALL // 8 if size <= module.SMALL_BYTES else SMALL


class Sharing(RuleBasedStateMachine):
    """Stores, resizes and releases bodies in any order; each stored body keeps its contents."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "KEPT_BYTES", SMALL_KEPT)
        self.patch.setattr(module, "SMALL_BYTES", SMALL_SMALL)
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
        assert (body is None) == (used + size > most(size))
        if body is not None:
            assert (body.place.start + (json_bytes or 0)) % 64 == 0
            assert len(body) == size
            body.view[:] = self.bodies[body] = self.content(size)

    @precondition(lambda self: self.bodies)
    @rule(data=st.data(), size=st.integers(0, SMALL + 1))
    def resize(self, data: st.DataObject, size: int) -> None:
        body = data.draw(st.sampled_from(list(self.bodies)))
        before = self.bodies[body]
        if size <= len(body):
            body.shrink(size)
        elif not body.try_grow(size):
            assert self.memory.used - len(before) + size > most(size)
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
        assert self.memory.used == sum(map(len, self.bodies)) <= most(0)

    @invariant()
    def memory_goes_back(self) -> None:
        pages = 2 * mmap.PAGESIZE * len(self.bodies)  # the first and the last of a body may hold others
        assert filled_bytes(self.memory) <= self.memory.used + pages + 2 * SMALL_KEPT
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


def arriving(memory: BodyMemory, size: int) -> StoredBody:
    body = memory.take(size, arriving=True)
    assert body is not None
    return body


def test_memory_of_a_large_body_is_reserved_as_it_arrives() -> None:
    memory = BodyMemory(64 * MIB)
    stuck = [arriving(memory, 64 * MIB) for _ in range(8)]
    assert memory.used == 64 * MIB
    assert filled_bytes(memory) == 0
    assert memory.take(MIB + 1) is None
    for _ in range(8):  # the share of small ones
        assert memory.take(MIB) is not None
    assert memory.take(1) is None
    for body in stuck[1:]:
        body.release()
    reserved = [stuck[0].reserved // MIB]
    while stuck[0].try_grow() and stuck[0].reserved < len(stuck[0]):
        reserved.append(stuck[0].reserved // MIB)
    assert reserved == [8, 16, 32]  # the small ones leave no room for 64
    memory.close()


def test_the_older_of_two_bodies_that_wait_for_each_other_grows() -> None:
    async def main() -> None:
        for first, second in ((0, 1), (1, 0)):
            memory = BodyMemory(64 * MIB)
            bodies = [arriving(memory, 64 * MIB) for _ in range(2)]
            assert all(body.try_grow(32 * MIB) for body in bodies)

            async def grow(body: StoredBody) -> None:
                try:
                    await body.grow(WAIT_S)
                except NoRoomError:
                    body.release()
                    raise

            tasks: dict[int, asyncio.Task[None]] = {}
            for index in (first, second):
                tasks[index] = asyncio.create_task(grow(bodies[index]))
                await asyncio.sleep(0)
            with pytest.raises(NoRoomError, match="67108864"):
                await tasks[1]
            await tasks[0]
            assert memory.used == bodies[0].reserved == 64 * MIB
            bodies[0].release()
            assert (memory.used, memory.is_short) == (0, False)
            memory.close()

    asyncio.run(main())


def test_a_body_that_grows_goes_before_large_ones_that_arrive() -> None:
    async def main() -> None:
        memory = BodyMemory(64 * MIB)
        first, other = arriving(memory, 64 * MIB), memory.take(50 * MIB)
        assert other is not None
        task = asyncio.create_task(first.grow(WAIT_S))
        await asyncio.sleep(0)
        assert memory.is_short
        assert memory.take(2 * MIB) is None  # though there is room
        small = arriving(memory, MIB)
        newcomer = asyncio.create_task(memory.reserve(40 * MIB, None, WAIT_S, arriving=True))
        await asyncio.sleep(0)
        other.release()
        await task
        assert first.reserved == 16 * MIB
        assert (await newcomer).reserved == 8 * MIB
        for body in (first, small, newcomer.result()):
            body.release()
        assert memory.used == 0
        memory.close()

    asyncio.run(main())


def test_a_body_that_is_released_while_it_waits_to_grow_takes_nothing() -> None:
    async def main() -> None:
        memory = BodyMemory(64 * MIB)
        first, other = arriving(memory, 64 * MIB), memory.take(56 * MIB)
        assert other is not None
        task = asyncio.create_task(first.grow(WAIT_S))
        await asyncio.sleep(0)
        first.release()
        other.release()
        with pytest.raises(NoRoomError):
            await task
        assert memory.used == 0
        bodies = [arriving(memory, 64 * MIB) for _ in range(8)]
        with pytest.raises(NoRoomError):  # nobody leaves
            await bodies[0].grow(0.01)
        assert not memory.is_short
        memory.close()

    asyncio.run(main())


def test_the_memory_can_be_made_larger_and_smaller() -> None:
    async def main() -> None:
        memory = BodyMemory(MIB)
        assert not memory.set_size(1 << 40)  # beyond the addresses
        first = memory.take(MIB)
        assert first is not None
        waiting = asyncio.create_task(memory.reserve(64 * MIB, None, WAIT_S))
        await asyncio.sleep(0)
        assert memory.set_size(65 * MIB)
        large = await waiting
        large.view[-1:] = b"x"
        assert memory.set_size(MIB)
        assert memory.take(1) is None
        large.release()
        first.release()
        assert (memory.used, memory.take(2 * MIB)) == (0, None)
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


@pytest.mark.parametrize("place", [(0, 1), (1 << 40, 1), (BodyMemory(1 << 20)._end - 1, 2)])
def test_a_place_outside_of_the_memory_is_an_error(
    place: tuple[int, int], pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    memory = BodyMemory(1 << 20)
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
