"""Messages between the supervisor and a generation: a JSON header and raw bytes. Imports no numpy.

4 bytes   length of the header, big-endian
header    JSON object; "body_bytes" is the length of what follows
body      bytes that only the two ends understand
"""

from __future__ import annotations

import asyncio
import json
import threading
from io import BufferedIOBase
from typing import Any

MAX_HEADER = 1 << 20
OBSERVED = "observed"  # kind of a frame that is no reply


class FrameError(Exception):
    """The other side sent something that is no frame."""


def head(header: dict[str, Any], body: bytes | memoryview) -> bytes:
    """Everything that goes before `body`."""
    text = json.dumps({**header, "body_bytes": len(body)}).encode()
    return len(text).to_bytes(4, "big") + text


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
        if header["body_bytes"] < 0:
            raise FrameError(f"body_bytes has value {header['body_bytes']}")
    except (ValueError, KeyError, TypeError) as error:
        raise FrameError(f"header is {text[:80]!r}: {error!r}") from error
    assert isinstance(header, dict)  # noqa: S101 - nothing else has the key
    return header


def _length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "big")
    if length > MAX_HEADER:
        raise FrameError(f"header of {length} bytes, at most {MAX_HEADER} are allowed")
    return length


async def read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, None at the end of the stream.

    Raises:
        FrameError: It is damaged or cut short.
    """
    try:
        prefix = await reader.readexactly(4)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("stream ends within a frame") from error
        return None
    try:
        header = _parse(await reader.readexactly(_length(prefix)))
        return header, await reader.readexactly(header["body_bytes"])
    except asyncio.IncompleteReadError as error:
        raise FrameError("stream ends within a frame") from error


def read_blocking(file: BufferedIOBase) -> tuple[dict[str, Any], bytes] | None:
    """`read` for a file object.

    Raises:
        FrameError: It is damaged or cut short.
    """
    prefix = file.read(4)
    if not prefix:
        return None
    if len(prefix) == 4:
        text = file.read(length := _length(prefix))
        if len(text) == length:
            header = _parse(text)
            body = file.read(header["body_bytes"])
            if len(body) == header["body_bytes"]:
                return header, body
    raise FrameError("stream ends within a frame")


def write_blocking(file: BufferedIOBase, header: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Send one frame."""
    file.write(head(header, body))
    file.write(body)
    file.flush()


class Outbox:
    """Sends frames of several threads, each whole.

    Args:
        file: Where they go.
    """

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._writing = threading.Lock()

    def send(self, header: dict[str, Any], body: bytes | memoryview = b"") -> None:
        """Send one frame.

        Raises:
            OSError: The other side went away.
        """
        with self._writing:
            write_blocking(self._file, header, body)
