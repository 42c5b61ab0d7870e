import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import time
from email.utils import parsedate_to_datetime

import httpx
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.config.sections import ServeConfig
from service.http.connections import Connections
from service.http.refusals import Refusals
from service.http.server import make_server
from tests.support.http_server import serving


async def hello(_):
    return JSONResponse({"hello": 1}, headers={"X-Other": "kept"})


def test_responses_have_a_date_and_the_server_leaves_when_it_is_told():
    async def main():
        async with (
            serving(Route("/", hello)) as served,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client,
        ):
            return [await client.get(target) for target in ("/", "/nowhere")]

    before = int(time.time())
    good, missing = asyncio.run(main())
    for response in (good, missing):
        [date] = response.headers.get_list("date")
        assert before <= parsedate_to_datetime(date).timestamp() <= time.time()
        assert "server" not in response.headers
    assert (good.status_code, good.json(), good.headers["x-other"]) == (200, {"hello": 1}, "kept")
    assert missing.status_code == 404


def test_a_server_that_is_told_before_it_began_leaves_at_once():
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = make_server(Starlette(), Connections(1, ServeConfig, Refusals(lambda _: None), lambda: False))
            server.should_exit = True
            await asyncio.wait_for(server.serve(sockets=[listener]), 30)
            assert server.should_exit
            server.should_exit = False
            assert not server.should_exit

    asyncio.run(main())


async def digest(request):
    body = await request.body()
    return JSONResponse({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})


def test_bodies_of_many_connections_at_once_are_not_mixed_up():
    """All connections are read into the same memory."""

    async def send(client, size, piece):
        body = os.urandom(size)

        async def pieces():
            for start in range(0, size, piece):
                yield body[start : start + piece]
                await asyncio.sleep(0)

        for content in (body, pieces()):  # the latter is sent in chunks
            response = await client.post("/digest", content=content)
            assert response.json() == {"bytes": size, "sha256": hashlib.sha256(body).hexdigest()}

    async def main():
        async with (
            serving(Route("/digest", digest, methods=["POST"])) as served,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=30) as client,
        ):
            sizes = [0, 1, 65_536, 65_537, 602_278, 1 << 20, (1 << 20) + 1, 3_000_000]
            await asyncio.gather(*(send(client, size, piece) for size in sizes for piece in (70_001, 1 << 20)))

    asyncio.run(main())


def test_a_body_in_tiny_pieces_is_whole():
    """Each reading brings thousands of them."""
    count = 200_000
    chunks = b"6\r\nsixsix\r\n" * count + b"0\r\n\r\n"

    async def main():
        async with serving(Route("/digest", digest, methods=["POST"])) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST /digest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
            answer = await asyncio.wait_for(reader.readuntil(b"}"), 60)
            writer.close()
            await writer.wait_closed()
        assert hashlib.sha256(b"sixsix" * count).hexdigest().encode() in answer

    asyncio.run(main())


def test_what_the_application_does_not_take_is_not_read():
    """A client cannot fill the memory with a body that nobody wants yet."""
    size = 64 << 20

    async def main():
        wanted, told = asyncio.Event(), asyncio.Event()

        async def slow(request):
            told.set()
            await wanted.wait()
            total = 0
            async for piece in request.stream():
                total += len(piece)
            return Response(str(total))

        async with serving(Route("/", slow, methods=["POST"])) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
            await told.wait()
            writer.write(bytes(size))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), 1)
            left = writer.transport.get_write_buffer_size()
            wanted.set()
            answer = await asyncio.wait_for(reader.readuntil(b"%d" % size), 30)
            writer.close()
        assert left > size // 2  # the rest is in the buffers of both sockets, and one piece in the server
        assert answer.startswith(b"HTTP/1.1 200")

    asyncio.run(main())


def test_a_server_without_descriptors_accepts_again_once_there_are_some(monkeypatch):
    """The listener stays readable meanwhile, which must not keep the event loop busy."""
    accept, missing = socket.socket.accept, 3

    def fail(listener):
        nonlocal missing
        if missing:
            missing -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    async def main():
        monkeypatch.setattr(socket.socket, "accept", fail)
        async with serving(Route("/", hello)) as served:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=30) as client:
                assert (await client.get("/")).status_code == 200
            assert served.refused == {"descriptors": 3}

    asyncio.run(main())


def test_an_acceptor_that_closes_while_it_waits_for_descriptors(monkeypatch):
    def fail(listener):
        raise OSError(errno.EMFILE, "Too many open files")

    async def main():
        monkeypatch.setattr(socket.socket, "accept", fail)
        async with serving(Route("/", hello)) as served:
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            while not served.refused:
                await asyncio.sleep(0.005)
        writer.close()

    asyncio.run(main())


def test_a_body_that_nobody_wanted_is_read_and_the_connection_goes_on():
    """The response is complete before the body begins."""
    body = b"x" * 300_000

    async def refuse(_):
        return Response("no", 413)

    async def main():
        async with serving(Route("/", refuse, methods=["POST"]), Route("/hello", hello)) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
            assert b" 413 " in await asyncio.wait_for(reader.readuntil(b"no"), 30)
            writer.write(body + b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"}"), 30)
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_little_of_a_body_is_read_until_somebody_wants_it():
    """Less while other bodies wait for memory."""

    async def kept(*, short):
        wanted, sizes = asyncio.Event(), []

        async def wait(request):
            await wanted.wait()
            async for piece in request.stream():
                sizes.append(len(piece))
            return Response("done")

        async with serving(Route("/", wait, methods=["POST"]), is_short=lambda: short) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))
            while served.connections._bodies == {}:
                await asyncio.sleep(0.01)
            wanted.set()
            await asyncio.wait_for(reader.readuntil(b"done"), 30)
            writer.close()
            await writer.wait_closed()
        assert sum(sizes) == 1_000_000
        return sizes[0]

    assert asyncio.run(kept(short=True)) <= 1 << 12
    assert 1 << 12 < asyncio.run(kept(short=False)) <= 1 << 16
