"""uvicorn as the daemon needs it: without signal handlers, and without wake-ups while there are no requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.acceptor import Acceptor
from service.http.connections import Connections
from service.http.protocol import DirectRoute, HostList, Protocol, http_date

_LAST_REQUESTS_S = 30  # after SIGTERM
_ON_THE_WAY_S = 0.2  # between the accepting of a connection and its request


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, because the daemon shuts down in its own order, and without its tick.

    It accepts connections by itself, within a limit.

    uvicorn checks ten times a second whether it should exit, and renews the Date header: for two servers that took more
    time than everything else in an idle daemon. Here the exit is awaited, and `Dated` adds the header to each response.
    """

    def __init__(
        self, config: uvicorn.Config, connections: Connections, direct: DirectRoute | None, hosts: HostList | None
    ) -> None:
        self._exit = asyncio.Event()
        self._connections = connections
        self._direct = direct
        self._hosts = hosts
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

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Accept connections from now on."""

        def make_protocol() -> Protocol:
            return Protocol(self.config, self.server_state, self._connections, self._direct, self._hosts)

        # uvicorn calls what is in this list `close` and `wait_closed`.
        self.servers = [Acceptor(listener, make_protocol, self._connections) for listener in sockets or ()]  # type: ignore[misc]
        self.started = True

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
                message["headers"] = [(b"date", http_date()), *message.get("headers", ())]
            await send(message)

        await self._app(scope, receive, dated)


def make_server(
    app: ASGIApp, connections: Connections, direct: DirectRoute | None = None, hosts: HostList | None = None
) -> Server:
    """Create a server for one kind of listening sockets.

    Args:
        app: Application that answers the requests.
        connections: Connections of the server.
        direct: Admits requests that are answered without the application.
        hosts: The hosts that requests may be meant for; None for all.
    """
    config = uvicorn.Config(
        Dated(app),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_LAST_REQUESTS_S,
    )
    return Server(config, connections, direct, hosts)
