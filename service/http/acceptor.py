"""Acceptance of connections, a few at a time, so that the bound on them holds at every moment."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from service.http.connections import Connections

_AT_ONCE = 16  # connections between two turns of the event loop; asyncio would accept as many as may wait
_REST_S = 0.2  # without free descriptors
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts the connections of one listener.

    Args:
        listener: Listening socket.
        make_protocol: Creates the protocol of a connection.
        connections: Connections of the server.
    """

    def __init__(
        self, listener: socket.socket, make_protocol: Callable[[], asyncio.BaseProtocol], connections: Connections
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Close the listener; the connections stay."""
        if self._closed:
            return
        self._closed = True
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    async def wait_closed(self) -> None:
        """Wait until no accepted connection is without its protocol."""
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._wait_for_descriptors()
                return
            opening = self._loop.create_task(self._loop.connect_accepted_socket(self._make_protocol, connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opened)

    def _opened(self, opening: asyncio.Task[object]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled():
            opening.exception()  # the client has closed the connection again

    def _wait_for_descriptors(self) -> None:
        """Accept nothing for a moment: the listener stays readable, so the event loop would spin."""
        self._connections.refusals.note("descriptors")
        self._connections.make_room()
        self._loop.remove_reader(self._listener.fileno())
        self._rest = self._loop.call_later(_REST_S, self._resume)

    def _resume(self) -> None:
        self._rest = None
        self._loop.add_reader(self._listener.fileno(), self._accept)
