"""The request queue of one generation, against a child that is scripted."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.ipc import frames
from service.ipc.messages import Body, Reply
from service.ipc.shared_memory import (
    DEFAULT_BYTES,
    LEAST_BYTES,
    PLACE,
    BodyMemory,
    ReceivedMemory,
    receive_memory,
    record_started,
)
from service.serving.channel import (
    BusyError,
    Channel,
    ChannelOptions,
    DeadlineError,
    NotStartedError,
    Question,
    ServingError,
)


class Child:
    """The other end of the socket: answers when the test says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, memory: ReceivedMemory) -> None:
        self.reader = reader
        self.writer = writer
        self.memory = memory
        self.shared: list[int] = []  # where bodies lay

    async def next(self) -> tuple[int, bytes]:
        frame = await asyncio.wait_for(frames.read(self.reader), 60)
        assert frame is not None
        header, body = frame
        if PLACE in header:
            assert not body
            start, size = header[PLACE]
            self.shared.append(start)
            body = self.memory.bodies[start : start + size]
        record_started(self.memory.started, header["id"])
        return header["id"], body

    def answer(self, identity: int, body: bytes, status: int = 200) -> None:
        self.writer.write(frames.head({"id": identity, "status": status, "seconds": 0.5}, body) + body)


def run(
    test: Callable[[Channel, Child], Awaitable[None]], queue: int = 8, body_bytes: int = DEFAULT_BYTES, **options: Any
) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        bodies = BodyMemory(body_bytes)
        started, memory = bodies.send_to(ours), receive_memory(theirs)
        channel = Channel("digits", ChannelOptions(queue, **options), bodies, started)
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        child = Child(*(await asyncio.open_unix_connection(sock=theirs)), memory)
        pump = asyncio.create_task(channel.pump())
        try:
            await test(channel, child)
        finally:
            channel.close()
            child.writer.close()
            await asyncio.wait_for(asyncio.gather(pump, return_exceptions=True), 5)
            assert bodies.used == 0
            bodies.close()
            memory.close()

    asyncio.run(main())


def ask(channel: Channel, body: bytes, deadline_s: float = 5) -> asyncio.Task[Reply]:
    return asyncio.create_task(channel.request(body, deadline_s))


def test_answers_find_their_requests_in_any_order() -> None:
    async def test(channel: Channel, child: Child) -> None:
        first, second = ask(channel, b"first"), ask(channel, b"second")
        (id_1, body_1), (id_2, body_2) = await child.next(), await child.next()
        assert (body_1, body_2) == (b"first", b"second")
        child.answer(id_2, b"to the second", 400)
        child.answer(id_1, b"to the first")
        assert await first == Reply(200, Body(b"to the first"), 0.5)
        assert await second == Reply(400, Body(b"to the second"), 0.5)
        assert channel.inflight == 0

    run(test)


def test_a_parked_request_makes_room_for_others_at_the_child() -> None:
    async def test(channel: Channel, child: Child) -> None:
        asked = [ask(channel, b"%d" % number) for number in range(5)]
        sent = [await child.next() for _ in range(2)]  # no more at once
        for identity, _ in sent:
            child.writer.write(frames.head({"kind": frames.PARKED, "id": identity}, b""))
        sent += [await child.next() for _ in range(2)]
        assert [body for _, body in sent] == [b"0", b"1", b"2", b"3"]
        child.answer(sent[2][0], b"to 2")
        sent.append(await child.next())
        for identity, body in (sent[1], sent[0], *sent[3:]):
            child.answer(identity, b"to " + body)
        assert [(await each).body.content for each in asked] == [b"to %d" % number for number in range(5)]
        last = [ask(channel, b"a"), ask(channel, b"b"), ask(channel, b"c")]
        for _ in range(2):
            child.answer((await child.next())[0], b"")
        child.answer((await child.next())[0], b"")
        await asyncio.gather(*last)

    run(test)


def test_where_the_json_ends_is_told_both_ways() -> None:
    async def test(channel: Channel, child: Child) -> None:
        asked = asyncio.create_task(channel.request(b"{}\0\1", 5, 2))
        frame = await asyncio.wait_for(frames.read(child.reader), 60)
        assert frame is not None
        header, body = frame
        assert (header["json_bytes"], body) == (2, b"{}\0\1")
        told = {"id": header["id"], "status": 200, "seconds": 0.5, "json_bytes": 4}
        child.writer.write(frames.head(told, b"[{}]\7") + b"[{}]\7")
        assert await asked == Reply(200, Body(b"[{}]\7", 4), 0.5)

    run(test)


def test_a_body_is_never_put_into_words() -> None:
    """50 ms for a body of 600 kB, which is what a full deque.remove puts into its error."""

    class Body(bytes):
        def __repr__(self) -> str:
            raise AssertionError("somebody wants to print the body")

    async def test(channel: Channel, child: Child) -> None:
        task = ask(channel, Body(b"pixels"))
        child.answer(*await child.next())
        assert (await task).body.content == b"pixels"

    run(test)


def test_what_else_is_to_be_done_goes_along_and_what_was_seen_comes_back_at_any_time() -> None:
    heard: list[dict[str, Any]] = []

    async def test(channel: Channel, child: Child) -> None:
        order = {"capture": None, "drift": True}
        looked_at, plain = asyncio.create_task(channel.request(b"1", 5, observe=order)), ask(channel, b"2")
        frame = await asyncio.wait_for(frames.read(child.reader), 60)
        assert frame is not None
        first = frame[0]
        assert first["observe"] == order
        frame = await asyncio.wait_for(frames.read(child.reader), 60)
        assert frame is not None
        assert "observe" not in frame[0]
        child.answer(first["id"], b"answer 1")
        child.writer.write(frames.head({"kind": "observed", "drift": 0.5}, b""))
        child.answer(frame[0]["id"], b"answer 2")
        assert [(await asked).body.content for asked in (looked_at, plain)] == [b"answer 1", b"answer 2"]
        assert [(told["kind"], told["drift"]) for told in heard] == [("observed", 0.5)]

    run(test, on_observed=heard.append)


def test_only_a_few_are_with_the_child_at_once() -> None:
    async def test(channel: Channel, child: Child) -> None:
        tasks = [ask(channel, str(n).encode()) for n in range(4)]
        sent = [await child.next(), await child.next()]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(frames.read(child.reader), 0.05)
        child.answer(*sent[0])
        sent.append(await child.next())
        for identity, body in sent[1:]:
            child.answer(identity, body)
        child.answer(*await child.next())
        assert [reply.body.content for reply in await asyncio.gather(*tasks)] == [b"0", b"1", b"2", b"3"]

    run(test)


def test_a_full_queue() -> None:
    async def test(channel: Channel, child: Child) -> None:
        tasks = [ask(channel, b"x") for _ in range(3)]
        await child.next()
        with pytest.raises(BusyError, match="3 requests waiting"):
            await channel.request(b"one too many", 5)
        channel.close()
        assert all(isinstance(error, ServingError) for error in await asyncio.gather(*tasks, return_exceptions=True))

    run(test, queue=3)


def test_a_deadline_frees_the_queue_but_not_the_child() -> None:
    async def test(channel: Channel, child: Child) -> None:
        tasks = [ask(channel, bytes([n]), 0.05) for n in range(3)]
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, DeadlineError) for error in errors)
        assert channel.inflight == 0
        assert channel.stalled_s > 0.04
        (id_1, body_1), (id_2, body_2) = await child.next(), await child.next()
        assert (body_1, body_2) == (b"\0", b"\1")  # the third never left the queue
        late = ask(channel, b"late")
        child.answer(id_1, b"nobody waits for this")
        child.answer(id_2, b"nor for this")
        identity, body = await child.next()
        assert body == b"late"
        child.answer(identity, b"in time")
        assert (await late).body.content == b"in time"
        assert channel.stalled_s == 0

    run(test)


def begin(channel: Channel, body: bytes, deadline_s: float = 5) -> asyncio.Future[Reply | ServingError]:
    outcome: asyncio.Future[Reply | ServingError] = asyncio.get_running_loop().create_future()
    channel.begin(Question(body), deadline_s, outcome.set_result)  # an error if it is called twice
    return outcome


def test_a_request_without_a_task_has_its_outcome_once() -> None:
    async def test(channel: Channel, child: Child) -> None:
        answered, late, lost = begin(channel, b"a"), begin(channel, b"b", 0.05), begin(channel, b"c")
        (id_1, body_1), (id_2, body_2) = await child.next(), await child.next()
        assert (body_1, body_2) == (b"a", b"b")
        assert isinstance(await late, DeadlineError)
        child.answer(id_1, b"answer")
        assert await answered == Reply(200, Body(b"answer"), 0.5)
        child.answer(id_2, b"nobody waits for this")
        await child.next()
        assert channel.inflight == 1
        channel.close()
        assert isinstance(await lost, ServingError)
        assert channel.inflight == 0
        with pytest.raises(NotStartedError):
            begin(channel, b"d")

    run(test)


def test_a_request_without_a_task_for_which_there_is_no_room_or_no_time() -> None:
    async def test(channel: Channel, child: Child) -> None:
        assert isinstance(await begin(channel, b"no time", 0), DeadlineError)
        waiting = begin(channel, b"a")
        with pytest.raises(BusyError):
            begin(channel, b"one too many")
        child.answer((await child.next())[0], b"first")  # what had no time was not sent
        assert await waiting == Reply(200, Body(b"first"), 0.5)

    run(test, queue=1)


def test_a_request_that_is_due_earlier_than_others_does_not_wait_for_them() -> None:
    async def test(channel: Channel, child: Child) -> None:
        slow, quick, slower = begin(channel, b"a", 60), begin(channel, b"b", 0.05), begin(channel, b"c", 0.1)
        assert isinstance(await asyncio.wait_for(quick, 60), DeadlineError)
        assert isinstance(await asyncio.wait_for(slower, 60), DeadlineError)
        assert not slow.done()
        child.answer((await child.next())[0], b"in time")
        assert isinstance(await slow, Reply)

    run(test)


def test_an_error_of_who_asked_ends_neither_the_channel_nor_other_requests(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise KeyError("x")

    async def test(channel: Channel, child: Child) -> None:
        channel.begin(Question(b"a"), 5, fail)
        other = begin(channel, b"b")
        for _ in range(2):
            child.answer(*await child.next())
        assert await other == Reply(200, Body(b"b"), 0.5)

    run(test)
    assert "could not be processed" in caplog.text


def test_draining() -> None:
    async def test(channel: Channel, child: Child) -> None:
        assert await channel.drain(0.01)
        task = ask(channel, b"x")
        identity, _ = await child.next()
        assert not await channel.drain(0.01)
        draining = asyncio.create_task(channel.drain(5))
        child.answer(identity, b"y")
        assert await draining
        assert (await task).body.content == b"y"

    run(test)


def test_a_child_that_ends() -> None:
    async def test(channel: Channel, child: Child) -> None:
        tasks = [ask(channel, b"x") for _ in range(3)]
        await child.next()
        child.writer.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        # The second lay in its socket, the third had not been sent.
        assert [type(result) for result in results] == [ServingError, NotStartedError, NotStartedError]
        assert {str(result) for result in results} == {"model 'digits' has lost its process; try again in some seconds"}
        with pytest.raises(ServingError):
            await channel.request(b"x", 5)

    run(test)


@pytest.mark.parametrize("junk", [b"\0\0\0\2{}", b"\xff\xff\xff\xff", frames.head({"id": 1}, b"12")])
def test_a_child_that_talks_nonsense(junk: bytes) -> None:
    async def test() -> Any:
        ours, theirs = socket.socketpair()
        channel = Channel("digits", ChannelOptions(8))
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        task = ask(channel, b"x")
        with theirs:
            theirs.sendall(junk)
        with pytest.raises((frames.FrameError, OSError)):
            await channel.pump()
        with pytest.raises(ServingError) as caught:
            await task
        assert type(caught.value) is ServingError  # nobody knows whether it was taken up

    asyncio.run(test())


def test_a_child_that_replies_does_not_hang_however_many_are_with_it() -> None:
    async def test(channel: Channel, child: Child) -> None:
        first, second = ask(channel, b"1"), ask(channel, b"2")
        (id_1, _), (id_2, _) = await child.next(), await child.next()
        await asyncio.sleep(0.05)
        assert channel.stalled_s >= 0.05
        answered = time.monotonic()
        child.answer(id_1, b"")
        await first
        assert channel.stalled_s <= time.monotonic() - answered
        child.answer(id_2, b"")
        await second
        assert channel.stalled_s == 0

    run(test)


def test_a_reply_that_nobody_waits_for_is_dropped() -> None:
    async def test(channel: Channel, child: Child) -> None:
        child.answer(12345, b"")
        asked = ask(channel, b"1")
        identity, _ = await child.next()
        child.answer(identity, b"answer")
        assert (await asked).body.content == b"answer"

    run(test)


def test_a_probe_is_told_to_be_computed_alone_and_needs_no_place_in_the_queue() -> None:
    async def test(channel: Channel, child: Child) -> None:
        asked = ask(channel, b"1")
        probe = asyncio.create_task(channel.request(b"probe", 5, alone=True))
        for told in (None, True):
            frame = await asyncio.wait_for(frames.read(child.reader), 60)
            assert frame is not None
            assert frame[0].get("alone") is told
            child.answer(frame[0]["id"], b"")
        await asyncio.gather(asked, probe)

    run(test, queue=1)


def test_large_bodies_lie_in_shared_memory_until_they_are_answered() -> None:
    async def test(channel: Channel, child: Child) -> None:
        bodies = [bytes([n]) * LEAST_BYTES for n in range(3)]
        tasks = [ask(channel, body) for body in bodies]
        (id_0, body_0), (id_1, body_1) = await child.next(), await child.next()
        assert [body_0, body_1] == bodies[:2]
        child.answer(id_1, b"one")
        id_2, body_2 = await child.next()
        assert body_2 == bodies[2]
        assert child.memory.bodies[child.shared[0] :][:LEAST_BYTES] == bodies[0]  # still there: it is not answered
        assert child.shared == [0, LEAST_BYTES, LEAST_BYTES]
        child.answer(id_0, b"zero")
        child.answer(id_2, b"two")
        assert [reply.body.content for reply in await asyncio.gather(*tasks)] == [b"zero", b"one", b"two"]

    run(test)


def test_a_body_keeps_its_place_beyond_its_deadline_as_long_as_the_child_may_read_it() -> None:
    async def test(channel: Channel, child: Child) -> None:
        with pytest.raises(DeadlineError):
            await channel.request(b"1" * LEAST_BYTES, 0.05)
        late = ask(channel, b"2" * LEAST_BYTES)
        (id_1, body_1), (id_2, body_2) = await child.next(), await child.next()
        assert (body_1[:1], body_2[:1]) == (b"1", b"2")
        child.answer(id_1, b"too late")
        child.answer(id_2, b"in time")
        assert (await late).body.content == b"in time"

    run(test)


def test_small_bodies_and_those_that_find_no_room_go_through_the_socket() -> None:
    async def test(channel: Channel, child: Child) -> None:
        bodies = [b"small", b"1" * LEAST_BYTES, b"2" * LEAST_BYTES]
        for body, places in zip(bodies, ([], [0], [0]), strict=True):
            tasks = [ask(channel, body)]
            if body[:1] == b"1":
                tasks.append(ask(channel, body))
            for _ in tasks:
                identity, seen = await child.next()
                assert seen == body
            if body[:1] == b"1":
                assert child.shared == [0]
            for number in range(identity - len(tasks) + 1, identity + 1):
                child.answer(number, b"")
            await asyncio.gather(*tasks)
            assert child.shared[:1] == places
        assert child.shared == [0, 0]

    run(test, body_bytes=LEAST_BYTES)


def test_a_child_that_ends_with_a_large_body() -> None:
    async def test(channel: Channel, child: Child) -> None:
        task = ask(channel, b"x" * LEAST_BYTES)
        await child.next()
        child.writer.close()
        with pytest.raises(ServingError, match="has lost its process"):
            await task
        with pytest.raises(ServingError):
            await channel.request(b"x" * LEAST_BYTES, 5)

    run(test)
