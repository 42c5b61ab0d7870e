"""Connections against a real server: what is slow, too large or too much, and the short way of inference."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from service.http import connections as connections_module
from service.http.bodies import BodyLimits, read_body, store_body
from service.ipc.shared_memory import BodyMemory, StoredBody
from tests.support.http_server import Served, serving

WAIT_S = 30.0


async def hello(_: Request) -> Response:
    return Response("hello")


async def digest(request: Request) -> Response:
    body = await read_body(request, 1 << 30)
    return JSONResponse({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})


# What is not admitted to the short way takes the other one.
ROUTES = (Route("/", hello), *(Route(path, digest, methods=["POST"]) for path in ("/digest", "/direct")))


class Client:
    """A connection that sends bytes and reads responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, fields and body of the next response."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_S)
        status, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines if line)
        body = await asyncio.wait_for(self.reader.readexactly(int(fields["content-length"])), WAIT_S)
        return int(status.split()[1]), fields, body

    async def closed(self) -> bool:
        """Wait until the server closes the connection, and return whether that was all that it sent."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), WAIT_S) == b""
        return True


@contextlib.asynccontextmanager
async def client_of(served: Served) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(look: Any) -> None:
    async def poll() -> None:
        while not look():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), WAIT_S)


def test_a_head_that_does_not_end_gets_408() -> None:
    async def main() -> None:
        async with serving(*ROUTES, head_timeout_s=0.1) as served, client_of(served) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
            status, fields, body = await client.answer()
            assert (status, fields["retry-after"], fields["connection"]) == (408, "1", "close")
            assert "serve.head_timeout_s = 0.1" in json.loads(body)["error"]
            assert await client.closed()
            assert served.refused == {"slow_head": 1}

    asyncio.run(main())


def test_the_next_head_on_a_connection_has_its_own_deadline() -> None:
    async def main() -> None:
        async with serving(*ROUTES, head_timeout_s=1.5) as served, client_of(served) as client:
            for _ in range(4):  # longer than one deadline
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
                await asyncio.sleep(0.4)
                client.send(b"\r\n")
                assert (await client.answer())[0] == 200
            client.send(b"GET")
            assert (await client.answer())[0] == 408

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/digest", "/direct"])
def test_a_body_that_does_not_end_gets_408(path: str) -> None:
    async def main() -> None:
        direct = Direct()
        settings = {"body_timeout_s": 0.1, "min_body_rate": 1 << 20}
        async with serving(*ROUTES, direct=direct, **settings) as served, client_of(served) as client:
            client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n" % path.encode())
            await asyncio.sleep(0)
            client.send(b"1234")
            status, fields, body = await client.answer()
            assert (status, fields["retry-after"], fields["connection"]) == (408, "1", "close")
            assert "4 bytes of the body had arrived within serve.body_timeout_s = 0.1" in json.loads(body)["error"]
            assert await client.closed()
            assert served.refused == {"slow_body": 1}
        assert direct.abandoned == ([408] if path == "/direct" else [])
        assert direct.memory.used == 0

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/digest", "/direct"])
def test_a_slow_body_of_the_least_rate_arrives(path: str) -> None:
    async def main() -> None:
        settings = {"body_timeout_s": 0.05, "min_body_rate": 100}  # a hundred bytes a second
        async with serving(*ROUTES, direct=Direct(), **settings) as served, client_of(served) as client:
            client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n" % path.encode())
            for _ in range(4):  # after the first piece there are ten seconds
                client.send(bytes(1000))
                await asyncio.sleep(0.1)
            status, _, body = await client.answer()
            assert (status, json.loads(body)["bytes"]) == (200, 4000)
            assert not served.refused

    asyncio.run(main())


def test_time_in_which_the_server_does_not_read_does_not_count() -> None:
    async def main() -> None:
        read = asyncio.Event()

        async def later(request: Request) -> Response:
            await read.wait()
            return await digest(request)

        settings = {"body_timeout_s": 1.0, "min_body_rate": 1 << 30}
        async with serving(Route("/", later, methods=["POST"]), **settings) as served, client_of(served) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (8 << 20))
            client.send(bytes(8 << 20))
            await asyncio.sleep(1.5)
            assert not served.refused
            read.set()
            assert (await client.answer())[0] == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    "head", [b"A: b\r\n" * 101, b"A: " + b"x" * (200 << 10), b"".join(b"A%d: b\r\n" % n for n in range(30_000))]
)
def test_a_head_that_is_too_large_gets_431(head: bytes) -> None:
    async def main() -> None:
        async with serving(*ROUTES) as served, client_of(served) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + head)
            assert (await client.answer())[0] == 431
            assert served.refused == {"large_head": 1}

    asyncio.run(main())


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n",
        b"POST /direct HTTP/1.1\r\nContent-Length: 1\r\n\r\na",
    ],
)
def test_what_is_no_http_gets_400(head: bytes) -> None:
    async def main() -> None:
        async with serving(*ROUTES) as served, client_of(served) as client:
            client.send(head)
            status, fields, body = await client.answer()
            assert (status, fields["content-type"], "retry-after" in fields) == (400, "application/json", False)
            assert "that it uses no TLS" in json.loads(body)["error"]
            assert await client.closed()

    asyncio.run(main())


def test_connections_that_never_asked_are_closed_before_those_of_clients() -> None:
    async def main() -> None:
        async with serving(*ROUTES, limit=3) as served, contextlib.AsyncExitStack() as stack:
            asking = await stack.enter_async_context(client_of(served))
            asking.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # it is the oldest, and idle for the longest time
            assert (await asking.answer())[0] == 200
            silent = []
            for count in range(1, 8):
                silent.append(await stack.enter_async_context(client_of(served)))
                await until(lambda: len(served.connections) == min(3, 1 + count))  # noqa: B023
            for client in silent[:-2]:
                assert await client.closed()
            asking.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await asking.answer())[0] == 200
            assert served.refused == {"idle": 5}

    asyncio.run(main())


def test_idle_connections_are_closed_the_oldest_first() -> None:
    async def main() -> None:
        async with serving(*ROUTES, limit=3) as served, contextlib.AsyncExitStack() as stack:
            clients = []
            for _ in range(3):
                clients.append(await stack.enter_async_context(client_of(served)))
                await until(lambda: len(served.connections) == len(clients))
            clients[0].send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # so that it is the youngest
            assert (await clients[0].answer())[0] == 200
            for closed in (1, 2):
                new = await stack.enter_async_context(client_of(served))
                assert await clients[closed].closed()
                new.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await new.answer())[0] == 200
            clients[0].send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await clients[0].answer())[0] == 200
            assert served.refused == {"idle": 2}
            assert len(served.connections) == 3

    asyncio.run(main())


def test_over_the_limit_only_get_is_answered() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def busy(_: Request) -> Response:
            await go.wait()
            return Response("done")

        async with serving(*ROUTES, Route("/busy", busy), limit=2) as served, contextlib.AsyncExitStack() as stack:
            working = [await stack.enter_async_context(client_of(served)) for _ in range(2)]
            for client in working:
                client.send(b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(
                lambda: not (served.connections._idle or served.connections._silent) and len(served.connections) == 2
            )
            async with client_of(served) as spare:
                spare.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                status, fields, _ = await spare.answer()
                assert (status, fields["connection"]) == (200, "close")
                assert await spare.closed()
            assert not served.refused
            async with client_of(served) as spare:
                spare.send(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
                status, fields, _ = await spare.answer()
                assert (status, fields["connection"], fields["retry-after"]) == (503, "close", "1")
            assert served.refused == {"connections": 1}
            go.set()
            assert [(await client.answer())[0] for client in working] == [200, 200]

    asyncio.run(main())


def test_spare_connections_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "SPARES", 2)

    async def main() -> None:
        async with serving(*ROUTES, limit=1) as served, contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(client_of(served))
            first.send(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")  # busy with its body
            await until(lambda: served.connections._bodies)
            spares = [await stack.enter_async_context(client_of(served)) for _ in range(3)]
            assert await spares[0].closed()
            assert served.refused == {"connections": 1}
            first.send(b"b")
            assert (await first.answer())[0] == 200

    asyncio.run(main())


def test_unfinished_heads_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "_HONEST_HEAD_S", 0.0)

    async def main() -> None:
        async with serving(*ROUTES, limit=2) as served, contextlib.AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(client_of(served)) for _ in range(2)]
            for client in slow:
                client.send(b"GET / HTTP/1.1\r\n")
            await until(lambda: len(served.connections._heads) == 2)
            async with client_of(served) as client:
                assert (await slow[0].answer())[0] == 408
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await client.answer())[0] == 200
            assert served.refused == {"slow_head": 1}

    asyncio.run(main())


def test_connections_without_requests_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_S", 0.1)

    async def main() -> None:
        async with serving(*ROUTES) as served, client_of(served) as silent, client_of(served) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await client.answer())[0] == 200
            assert await silent.closed()
            assert await client.closed()
            assert not served.refused
            await until(lambda: not served.connections)
            assert served.connections._timer is None

    asyncio.run(main())


def test_a_client_that_does_not_read_its_response_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_S", 0.1)

    async def large(_: Request) -> Response:
        return Response(bytes(64 << 20))

    async def main() -> None:
        async with serving(Route("/", large)) as served, client_of(served) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: served.refused)
            assert served.refused == {"slow_reader": 1}

    asyncio.run(main())


class Direct:
    """Answers POST /direct with the digest of the body."""

    def __init__(self) -> None:
        self.memory = BodyMemory(8 << 20)
        self.abandoned: list[int] = []
        self.release = asyncio.Event()
        self.release.set()
        self.local: StoredBody | None = None

    def is_short(self) -> bool:
        return self.memory.is_short

    def __call__(self, scope: Scope) -> Echo | None:
        fields = dict(scope["headers"])
        if scope["path"] != "/direct" or b"content-length" not in fields:
            return None
        body = self.memory.take(int(fields[b"content-length"]), arriving=True)
        return None if body is None else Echo(self, body)


class Echo:
    """One request to `Direct`."""

    def __init__(self, direct: Direct, body: StoredBody) -> None:
        self.body = body
        self._direct = direct

    def respond(self, send: Callable[[Response], None], run: Callable[[Coroutine[Any, Any, Response]], None]) -> None:
        if self._direct.release.is_set():
            send(self._answer())
        else:
            run(self._answer_later())

    async def _answer_later(self) -> Response:
        await self._direct.release.wait()
        return self._answer()

    def _answer(self) -> Response:
        found = bytes(self.body.view)
        self.body.release()
        return JSONResponse({"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()})

    def abandon(self, status: int) -> None:
        self._direct.abandoned.append(status)
        self.body.release()


def request_of(body: bytes, path: bytes = b"/direct", fields: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (path, fields, len(body))
    return head + body


def expected(body: bytes) -> dict[str, Any]:
    return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("size", [0, 1, 1000, 60_000, 70_000, 602_278, 3_000_000])
def test_a_body_is_received_in_its_place(size: int) -> None:
    async def main() -> None:
        direct = Direct()
        async with serving(*ROUTES, direct=direct) as served, client_of(served) as client:
            for piece in (1 << 30, max(1, size // 7)):  # at once, and in pieces
                body = os.urandom(size)
                data = request_of(body)
                for start in range(0, len(data), piece):
                    client.send(data[start : start + piece])
                    await client.writer.drain()
                    await asyncio.sleep(0)
                status, fields, answer = await client.answer()
                assert (status, json.loads(answer)) == (200, expected(body))
                assert fields.keys() >= {"date", "content-type", "content-length"}
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # the connection is as good as before
            assert (await client.answer())[2] == b"hello"
        assert direct.memory.used == 0

    asyncio.run(main())


def head_of(size: int) -> bytes:
    return b"POST /direct HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size


def test_a_large_body_is_not_read_until_there_is_memory_for_it() -> None:
    async def main() -> None:
        direct, body = Direct(), os.urandom(3_000_000)
        other = direct.memory.take(7 << 20)
        assert other is not None
        settings = {"body_timeout_s": 1, "min_body_rate": 1 << 30}
        async with serving(*ROUTES, direct=direct, **settings) as served, client_of(served) as client:
            client.send(request_of(body))
            await until(lambda: direct.memory.is_short)
            assert direct.memory.used == 8 << 20
            await asyncio.sleep(1.3)  # time to be overdue
            other.release()
            status, _, answer = await client.answer()
            assert (status, json.loads(answer)) == (200, expected(body))
            assert not served.refused
        assert direct.memory.used == 0

    asyncio.run(main())


def test_a_large_body_without_memory_for_all_of_it_gets_503() -> None:
    async def main() -> None:
        direct, body = Direct(), os.urandom(3_000_000)
        other = direct.memory.take(7 << 20)
        assert other is not None
        async with serving(*ROUTES, direct=direct, deadline_ms=100) as served, client_of(served) as client:
            client.send(request_of(body))
            status, fields, answer = await client.answer()
            assert (status, fields["retry-after"], fields["connection"]) == (503, "1", "close")
            assert "serve.max_arriving_bytes = 8388608" in json.loads(answer)["error"]
            assert (served.refused, direct.abandoned) == ({"body_memory": 1}, [503])
            assert await client.closed()
        assert direct.memory.used == len(other)

    asyncio.run(main())


def test_a_client_that_goes_away_while_its_body_waits_for_memory() -> None:
    async def main() -> None:
        direct = Direct()
        other = direct.memory.take(7 << 20)
        assert other is not None
        async with serving(*ROUTES, direct=direct, deadline_ms=1000) as served:
            async with client_of(served) as client:
                client.send(request_of(bytes(3_000_000)))
                await until(lambda: direct.memory.is_short)
                client.writer.transport.abort()
            await until(lambda: not served.connections and not direct.memory.is_short)
        assert len(direct.abandoned) == 1
        assert direct.memory.used == len(other)

    asyncio.run(main())


@pytest.mark.parametrize("sent", [1, 60_000])
def test_a_slow_body_goes_when_others_wait_for_memory(sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "_HURRY_S", 0.1)
    monkeypatch.setattr(connections_module, "_CHECK_S", 0.1)

    async def main() -> None:
        direct = Direct()
        async with contextlib.AsyncExitStack() as stack:
            served = await stack.enter_async_context(serving(*ROUTES, direct=direct, is_short=direct.is_short))
            slow = [await stack.enter_async_context(client_of(served)) for _ in range(8)]
            for client in slow:
                client.send(head_of(8 << 20) + bytes(sent))
            await until(lambda: direct.memory.used == 8 << 20)
            assert not served.refused  # nobody waits
            # As many as hold memory: with fewer, those would be spared that are not overdue yet when the first ones go.
            waiting = [asyncio.create_task(direct.memory.reserve(1 << 20, None, WAIT_S)) for _ in slow]
            for client in slow:
                status, fields, answer = await client.answer()
                assert (status, fields["retry-after"]) == (408, "1")
                assert "others wait for room within serve.max_arriving_bytes" in json.loads(answer)["error"]
            for body in await asyncio.gather(*waiting):
                body.release()
            assert (served.refused, direct.abandoned) == ({"slow_body": 8}, [408] * 8)
        assert direct.memory.used == 0

    asyncio.run(main())


def test_bodies_that_take_the_other_way_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "_CHECK_S", 0.1)
    direct, body = Direct(), os.urandom(3_000_000)

    async def store(request: Request) -> Response:
        found, _ = await store_body(request, direct.memory, BodyLimits(8 << 20, 8 << 20, WAIT_S))
        try:
            return JSONResponse(expected(bytes(found.view)))
        finally:
            found.release()

    async def main() -> None:
        route = Route("/stored", store, methods=["POST"])
        async with serving(route, is_short=direct.is_short) as served, client_of(served) as client:
            other = direct.memory.take(7 << 20)
            assert other is not None
            head = b"POST /stored HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            for data in (request_of(body, b"/stored"), head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)):
                client.send(data)
                await until(direct.is_short)
                assert 7 << 20 < direct.memory.used <= 8 << 20
                other.release()
                assert json.loads((await client.answer())[2]) == expected(body)
                other = direct.memory.take(7 << 20)
                assert other is not None
            client.send(head_of(2 << 20).replace(b"/direct", b"/stored"))
            await until(lambda: direct.memory.used == 8 << 20)
            waiting = asyncio.create_task(direct.memory.reserve(2 << 20, None, WAIT_S))
            await until(lambda: served.refused == {"slow_body": 1})
            other.release()
            (await waiting).release()
            assert direct.memory.used == 0

    asyncio.run(main())


def test_a_body_that_takes_no_memory_is_in_no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "_HURRY_S", 0.0)
    monkeypatch.setattr(connections_module, "_CHECK_S", 0.01)

    async def main() -> None:
        async with serving(*ROUTES, is_short=lambda: True) as served, client_of(served) as client:
            data = request_of(b"body", b"/digest")
            client.send(data[:-1])
            await asyncio.sleep(0.3)
            client.send(data[-1:])
            assert (await client.answer())[0] == 200
            assert not served.refused

    asyncio.run(main())


def test_requests_in_a_row_are_answered_in_their_order() -> None:
    async def main() -> None:
        direct = Direct()
        async with serving(*ROUTES, direct=direct) as served, client_of(served) as client:
            bodies = [os.urandom(size) for size in (10, 300_000, 0, 5, 70_000)]
            get = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            client.send(b"".join(request_of(body) + request_of(body, b"/digest") + get for body in bodies))
            for body in bodies:
                for _ in range(2):
                    assert json.loads((await client.answer())[2]) == expected(body)
                assert (await client.answer())[2] == b"hello"
        assert direct.memory.used == 0

    asyncio.run(main())


def test_the_end_of_a_connection_after_its_response() -> None:
    async def main() -> None:
        async with serving(*ROUTES, direct=Direct()) as served:
            for data in (
                request_of(b"x", fields=b"Connection: close\r\n"),
                request_of(b"x").replace(b"HTTP/1.1", b"HTTP/1.0"),
            ):
                async with client_of(served) as client:
                    client.send(data)
                    status, fields, _ = await client.answer()
                    assert (status, fields["connection"]) == (200, "close")
                    assert await client.closed()

    asyncio.run(main())


def test_a_client_that_asks_before_it_sends_its_body() -> None:
    async def main() -> None:
        async with serving(*ROUTES, direct=Direct()) as served, client_of(served) as client:
            client.send(request_of(b"", fields=b"Expect: 100-continue\r\n").replace(b"Length: 0", b"Length: 4"))
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"body")
            assert json.loads((await client.answer())[2]) == expected(b"body")

    asyncio.run(main())


def test_clients_that_go_away_leave_nothing_behind() -> None:
    async def main() -> None:
        direct = Direct()
        async with serving(*ROUTES, direct=direct) as served:
            async with client_of(served) as client:
                client.send(request_of(bytes(100_000))[:-1])
                await until(lambda: direct.memory.used == 100_000)
            await until(lambda: direct.memory.used == 0)
            assert direct.abandoned == [400]
            direct.release.clear()
            async with client_of(served) as client:
                client.send(request_of(bytes(100_000)))
                await until(lambda: not served.connections._bodies and direct.memory.used)
            await until(lambda: not served.connections)
            direct.release.set()
            await until(lambda: direct.memory.used == 0)
            assert direct.abandoned == [400]  # it was complete, and was answered to nobody

    asyncio.run(main())


def test_a_server_that_stops_answers_what_is_arriving() -> None:
    async def main() -> None:
        direct = Direct()
        body = os.urandom(300_000)
        async with contextlib.AsyncExitStack() as stack:
            async with serving(*ROUTES, direct=direct) as served:
                client = await stack.enter_async_context(client_of(served))
                client.send(request_of(body)[:-1])
                await until(lambda: served.connections._bodies)
                asyncio.get_running_loop().call_later(0.1, client.send, body[-1:])
            status, _, answer = await client.answer()
            assert (status, json.loads(answer)) == (200, expected(body))

    asyncio.run(main())
