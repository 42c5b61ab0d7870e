import asyncio
import contextlib
import hashlib
import os
import socket
import time
from email.utils import parsedate_to_datetime

import httpx
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.http.server import make_server


async def hello(_):
    return JSONResponse({"hello": 1}, headers={"X-Other": "kept"})


@contextlib.asynccontextmanager
async def serving(*routes):
    """A running server's port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(Starlette(routes=list(routes)))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
            assert not task.done()
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, 30)


def test_responses_have_a_date_and_the_server_leaves_when_it_is_told():
    async def main():
        async with (
            serving(Route("/", hello)) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
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
            server = make_server(Starlette())
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
            serving(Route("/digest", digest, methods=["POST"])) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ):
            sizes = [0, 1, 65_536, 65_537, 602_278, 1 << 20, (1 << 20) + 1, 3_000_000]
            await asyncio.gather(*(send(client, size, piece) for size in sizes for piece in (70_001, 1 << 20)))

    asyncio.run(main())


def test_a_body_in_tiny_pieces_is_whole():
    """Each reading brings thousands of them."""
    count = 200_000
    chunks = b"6\r\nsixsix\r\n" * count + b"0\r\n\r\n"

    async def main():
        async with serving(Route("/digest", digest, methods=["POST"])) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
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

        async with serving(Route("/", slow, methods=["POST"])) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
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
