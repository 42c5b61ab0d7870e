"""Send raw requests to a running daemon, many at once, and collect the statuses of whatever comes back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

_SILENCE_S = 0.3  # after a response: no other one comes
_PATIENCE_S = 60.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_EXPECTED = {503, 504}  # of those from 500 on


async def statuses_of(address: str, raw: bytes) -> list[int]:
    """Return the statuses of the responses to some bytes; none if the connection was closed without one.

    Raises:
        TimeoutError: Nothing came, and the connection stayed open.
    """
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    received = bytearray()
    try:
        writer.write(raw)
        with contextlib.suppress(ConnectionError):
            while True:
                patience_s = _SILENCE_S if _STATUS.search(received) else _PATIENCE_S
                try:
                    piece = await asyncio.wait_for(reader.read(1 << 16), patience_s)
                except asyncio.TimeoutError:
                    if received:
                        break
                    raise
                if not piece:
                    break
                received += piece
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return [int(found) for found in _STATUS.findall(received)]


class Batches:
    """Sends requests in batches: hypothesis draws one at a time, and many draws at once would exceed its limits.

    Args:
        address: URL of the server.
        size: Requests of a batch.

    Attributes:
        sent: Number of requests so far.
        faults: What was wrong so far.
    """

    def __init__(self, address: str, size: int) -> None:
        self.sent = 0
        self.faults: list[str] = []
        self._address = address
        self._size = size
        self._waiting: list[bytes] = []

    def add(self, raw: bytes) -> None:
        """Send a request, once its batch is complete."""
        self._waiting.append(raw)
        if len(self._waiting) == self._size:
            self.flush()

    def flush(self) -> None:
        """Send those that are left."""
        self.faults += faults_of(self._address, self._waiting)
        self.sent += len(self._waiting)
        self._waiting.clear()


def faults_of(address: str, requests: Sequence[bytes]) -> list[str]:
    """Send requests at once, each over its own connection; return what was wrong with the responses."""

    async def main() -> list[list[int] | BaseException]:
        return await asyncio.gather(*(statuses_of(address, raw) for raw in requests), return_exceptions=True)

    faults = []
    for raw, found in zip(requests, asyncio.run(main()), strict=True):
        if isinstance(found, BaseException):
            faults.append(f"{found!r}: {raw!r:.300}")
        elif bad := [status for status in found if status >= 500 and status not in _EXPECTED]:
            faults.append(f"status {bad[0]}: {raw!r:.300}")
    return faults
