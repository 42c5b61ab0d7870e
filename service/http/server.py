"""uvicorn as the daemon needs it: without signal handlers, and without wake-ups while there are no requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from functools import lru_cache

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_KEEP_ALIVE_S = 75
_LAST_REQUESTS_S = 30  # after SIGTERM
_READ_BYTES = 1 << 20  # at once
_ON_THE_WAY_S = 0.2  # between the accepting of a connection and its request


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, because the daemon shuts down in its own order, and without its tick.

    uvicorn checks ten times a second whether it should exit, and renews the Date header: for two servers that took more
    time than everything else in an idle daemon. Here the exit is awaited, and `Dated` adds the header to each response.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        self._exit = asyncio.Event()
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """Whether the server exits, or is about to; uvicorn's own switch."""
        return self._exit.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._exit.set()
        else:
            self._exit.clear()

    async def main_loop(self) -> None:
        """Sleep until the server should exit."""
        await self.on_tick(0)  # sets the headers of every response
        await self._exit.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners first, then the connections, so that a request that is just arriving is not cut off."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_ON_THE_WAY_S)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


class Dated:
    """An application whose responses have a Date header, which RFC 9110 requires of servers with a clock.

    Args:
        app: Application that answers the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the header when the response starts."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(b"date", _date(int(time.time()))), *message.get("headers", ())]
            await send(message)

        await self._app(scope, receive, dated)


class Protocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's protocol, tuned for bodies of some 100 kB: fewer reads, each with a turn of the loop, and fewer copies.

    asyncio would read 256 KiB at a time, each into new memory. As before, uvicorn stops reading after each piece until
    the application has taken it.
    """

    _buffer = memoryview(bytearray(_READ_BYTES))  # shared: a piece is parsed and copied before the next one is read

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that the transport reads into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read."""
        self.data_received(self._buffer[:nbytes])  # type: ignore[arg-type]  # the parser takes any buffer

    def on_body(self, body: bytes) -> None:
        """Pass the first piece on unchanged: uvicorn would copy it twice, to a bytearray and back."""
        cycle = self.cycle
        if not cycle.response_complete:
            found: object = cycle.body
            if not found:
                cycle.body, body = body, b""  # type: ignore[assignment]
            elif isinstance(found, bytes):
                cycle.body = bytearray(found)  # can be extended: tiny pieces may follow
        super().on_body(body)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """Return the value of the Date header for a second of time.time()."""
    return formatdate(second, usegmt=True).encode()


def make_server(app: ASGIApp) -> Server:
    """Create a server for one kind of listening sockets."""
    config = uvicorn.Config(
        Dated(app),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_REQUESTS_S,
    )
    return Server(config)
