"""uvicorn as the daemon needs it: without signal handlers of its own, and asleep while nobody asks."""

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
    """uvicorn without its signal handlers, since the daemon has its own order of leaving, and without its tick.

    uvicorn looks ten times a second whether it should exit, and renews the Date header then: for two servers that was
    more than all else an idle daemon did. Here the exit is awaited, and `Dated` makes the header for each response.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        self._exit = asyncio.Event()
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """Set to true to have the server leave; uvicorn's own switch."""
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
        """Close the doors first, then the connections: a request that is on its way through one is not cut off."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_ON_THE_WAY_S)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Dated:
    """An application whose responses have a Date, as RFC 9110 wants it of whoever has a clock.

    Args:
        app: Answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and add the header when the response starts."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(b"date", _date(int(time.time()))), *message.get("headers", ())]
            await send(message)

        await self._app(scope, receive, dated)


class Protocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's, for bodies of some 100 kB: fewer pieces, each with a turn of the loop, and fewer copies.

    asyncio would read 256 KiB at a time, each into memory of its own. As before, uvicorn stops reading after each piece
    until the application has taken it.
    """

    _buffer = memoryview(bytearray(_READ_BYTES))  # for all: what is read is parsed, and copied, before anything else is

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport reads to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read."""
        self.data_received(self._buffer[:nbytes])  # type: ignore[arg-type]  # the parser takes any buffer

    def on_body(self, body: bytes) -> None:
        """Let the application have a first piece as it is: uvicorn copies it twice, to a bytearray and back."""
        cycle = self.cycle
        if not cycle.response_complete:
            found: object = cycle.body
            if not found:
                cycle.body, body = body, b""  # type: ignore[assignment]
            elif isinstance(found, bytes):
                cycle.body = bytearray(found)  # to it can be added, and tiny pieces may follow
        super().on_body(body)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """The header's value in a second of time.time()."""
    return formatdate(second, usegmt=True).encode()


def make_server(app: ASGIApp) -> Server:
    """A server for one kind of listening sockets."""
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
