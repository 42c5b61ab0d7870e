"""Many connections to one server that are opened, sent some bytes, and left as they are."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from typing import cast
from urllib.parse import urlsplit

MIB = 1 << 20
HALF_A_HEAD = b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: localhost\r\n"
_PATIENCE_S = 60.0
_DESCRIPTORS = 4096


class Crowd:
    """Connections that send what they are told and read nothing by themselves.

    Args:
        address: URL or HOST:PORT of the server.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address if "//" in address else f"//{address}")
        self._address = (parts.hostname, parts.port)
        self.sockets: list[socket.socket] = []

    def open(self, count: int, data: bytes = b"") -> list[socket.socket]:
        """Open connections, and send some bytes over each."""
        made = []
        for _ in range(count):
            made.append(socket.create_connection(self._address, timeout=_PATIENCE_S))
            self.sockets.append(made[-1])
            with contextlib.suppress(ConnectionError):  # it was closed to make room
                made[-1].sendall(data)
        return made

    def push(self, data: bytes, seconds: float = 1.0) -> None:
        """Send bytes over all connections at once, as far as the server takes them within some seconds."""
        left = {connection: memoryview(data) for connection in self.sockets}
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for connection in self.sockets:
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_WRITE)
            while left and time.monotonic() < end:
                for key, _ in selector.select(0.1):
                    connection = cast(socket.socket, key.fileobj)
                    try:
                        left[connection] = left[connection][connection.send(left[connection]) :]
                    except BlockingIOError:
                        continue
                    except OSError:  # it was refused
                        left[connection] = memoryview(b"")
                    if not left[connection]:
                        selector.unregister(connection)
                        del left[connection]
        for connection in self.sockets:
            connection.settimeout(_PATIENCE_S)

    def close(self) -> None:
        """Close all connections."""
        for connection in self.sockets:
            connection.close()
        self.sockets.clear()


@contextlib.contextmanager
def crowd(address: str) -> Iterator[Crowd]:
    """Yield connections to a server, and close them at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))
    made = Crowd(address)
    try:
        yield made
    finally:
        made.close()


def length(size: int) -> bytes:
    """Return the rest of a head that announces a body without JSON."""
    return b"Inference-Header-Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % size
