"""Memory shared by the supervisor and a generation: a body can be read until its place is released."""

from __future__ import annotations

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
from service.ipc import shared_memory as arena_module
from service.ipc.shared_memory import ARENA_BYTES, KEPT_BYTES, LEAST_BYTES, PLACE, Arena, Inbox, Place, receive_memory

SMALL_ARENA = 1 << 18
SMALL_KEPT = 1 << 16


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def frame_of(header: dict[str, Any], body: bytes = b"") -> io.BytesIO:
    return io.BytesIO(frames.head(header, body) + body)


def filled_bytes(descriptor: int) -> int:
    """Return how many bytes of a file take memory."""
    return os.fstat(descriptor).st_blocks * 512


class Sharing(RuleBasedStateMachine):
    """Adds and releases bodies in any order; each stored body keeps its contents."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(arena_module, "ARENA_BYTES", SMALL_ARENA)
        self.patch.setattr(arena_module, "KEPT_BYTES", SMALL_KEPT)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.arena = Arena(ours)
            _, [self.descriptor], _, _ = socket.recv_fds(theirs, 1, 1)
        self.child = mmap.mmap(self.descriptor, SMALL_ARENA)
        self.bodies: dict[Place, bytes] = {}
        self.count = 0

    @rule(size=st.integers(0, SMALL_ARENA + 1), json_bytes=st.one_of(st.none(), st.integers(0, 10**18)))
    def put(self, size: int, json_bytes: int | None) -> None:
        self.count += 1
        body = self.count.to_bytes(2, "big") * (size // 2) + b"x" * (size % 2)
        place = self.arena.put(body, json_bytes)
        if size < LEAST_BYTES or size > SMALL_ARENA:
            assert place is None
        elif not self.bodies and size <= SMALL_ARENA - 128:
            assert place is not None
        if place is not None:
            assert (place.start + (json_bytes or 0)) % 64 == 0
            assert place.size == size
            self.bodies[place] = body

    @precondition(lambda self: self.bodies)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.bodies)))
        self.arena.free(place)
        del self.bodies[place]

    @invariant()
    def all_are_as_they_were_put(self) -> None:
        for place, body in self.bodies.items():
            assert self.child[place.start : place.end] == body
        ordered = sorted(self.bodies)
        assert all(before.end <= after.start for before, after in pairwise(ordered))
        assert all(place.start >= 64 and place.end <= SMALL_ARENA for place in ordered)

    @invariant()
    def memory_goes_back(self) -> None:
        if not self.bodies:
            assert filled_bytes(self.descriptor) <= SMALL_KEPT

    def teardown(self) -> None:
        self.arena.close()
        self.child.close()
        os.close(self.descriptor)
        self.patch.undo()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_the_memory_of_a_large_body_is_released(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    arena = Arena(ours)
    _, [descriptor], _, _ = socket.recv_fds(theirs, 1, 1)
    assert filled_bytes(descriptor) == 0
    place = arena.put(b"x" * (ARENA_BYTES - 128), None)
    assert place is not None
    assert filled_bytes(descriptor) >= ARENA_BYTES - 4096
    assert arena.put(b"y" * LEAST_BYTES, None) is None  # full: through the socket
    arena.free(place)
    assert 0 < filled_bytes(descriptor) <= KEPT_BYTES
    os.close(descriptor)


def test_the_peer_cannot_resize_the_memory(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    arena = Arena(ours)
    _, [descriptor], _, _ = socket.recv_fds(theirs, 1, 1)
    for size in (0, 2 * ARENA_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    os.close(descriptor)
    arena.close()


def test_no_descriptor_stays_open(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - numbers, no paths
    arena, memory = Arena(ours), receive_memory(theirs)
    arena.close()
    memory.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_a_body_is_read_in_place_and_is_writable(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    arena, memory = Arena(ours), receive_memory(theirs)
    body = bytes(range(256)) * 256
    place = arena.put(body, 5)
    inbox = Inbox(frame_of({"id": 7, PLACE: place}), memory)
    frame = inbox.read()
    assert frame is not None
    header, content = frame
    assert header["id"] == 7
    assert isinstance(content, memoryview)
    assert (bytes(content), content.readonly) == (body, False)
    assert inbox.read() is None


def test_the_last_started_request_is_known_after_the_peer_exited(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    arena, memory = Arena(ours), receive_memory(theirs)
    place = arena.put(b"x" * LEAST_BYTES, None)
    assert arena.last_started == 0
    sent = frame_of({"id": 7}, b"small").getvalue() + frame_of({"id": 1 << 40, PLACE: place}).getvalue()
    inbox = Inbox(io.BytesIO(sent), memory)
    for identity in (7, 1 << 40):
        inbox.read()
        assert arena.last_started == identity
    assert inbox.read() is None
    theirs.close()
    assert arena.last_started == 1 << 40


def test_the_body_of_a_sampled_request_outlives_its_reply(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    arena, memory = Arena(ours), receive_memory(theirs)
    read = {}
    place = arena.put(b"1" * LEAST_BYTES, None)
    for key, told in (("plain", {}), ("observed", {"observe": {"drift": True}})):
        frame = Inbox(frame_of({"id": 1, PLACE: place, **told}), memory).read()
        assert frame is not None
        read[key] = frame[1]
    assert place is not None
    arena.free(place)
    assert arena.put(b"2" * LEAST_BYTES, None) == place
    assert {key: bytes(body[:1]) for key, body in read.items()} == {"plain": b"2", "observed": b"1"}


def test_bodies_in_the_frame_are_read_without_shared_memory() -> None:
    inbox = Inbox(frame_of({"id": 1}, b"body"))
    assert inbox.read() == ({"id": 1, "body_bytes": 4}, b"body")
    assert inbox.read() is None


@pytest.mark.parametrize("place", [(0, 1), (ARENA_BYTES, 1), (ARENA_BYTES - 1, 2)])
def test_a_place_outside_of_the_memory_is_an_error(
    place: tuple[int, int], pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    arena = Arena(ours)
    memory = receive_memory(theirs) if place[0] else None
    with pytest.raises(frames.FrameError, match="shared memory has"):
        Inbox(frame_of({"id": 1, PLACE: place}), memory).read()
    arena.close()


def test_a_closed_connection_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    with pytest.raises(frames.FrameError, match="closed the connection"):
        receive_memory(theirs)
