"""Messages between the supervisor and a generation: a JSON header and raw bytes. Imports no numpy.

4 bytes   length of the header, big-endian
header    JSON object; "body_bytes" is the length of what follows
body      raw bytes that only the two ends interpret
"""

from __future__ import annotations

import asyncio
import threading
from io import BufferedIOBase
from typing import Any

import orjson

MAX_HEADER = 1 << 20
OBSERVED = "observed"  # kind of a frame that carries an observation, not a reply
# Kind of a frame that says of a request that the child reads it elsewhere, so that it can compute others meanwhile.
PARKED = "parked"


class FrameError(Exception):
    """The peer sent something that is not a valid frame."""


def head(header: dict[str, Any], body: bytes | memoryview) -> bytes:
    """Return the length prefix and the header that precede `body` in its frame."""
    text = orjson.dumps({**header, "body_bytes": len(body)}, _as_plain)
    return len(text).to_bytes(4, "big") + text


def _as_plain(value: object) -> object:
    """Return what orjson does not know as what it is: named tuples, and the floats of numpy."""
    if isinstance(value, tuple):
        return tuple(value)
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no type of JSON")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = orjson.loads(text)
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
    """Read the next frame; return None at the end of the stream.

    Raises:
        FrameError: The frame is damaged or cut short.
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


class Decoder:
    """Splits what arrives on a stream into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._header: dict[str, Any] | None = None  # of the frame whose body is arriving
        self._missing = 4  # bytes that `_pending` needs before it is worth looking at

    @property
    def is_within_frame(self) -> bool:
        """Whether a part of a frame has arrived."""
        return bool(self._pending) or self._header is not None

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """Return the frames that are complete with this data.

        Raises:
            FrameError: A frame is damaged.
        """
        if self._pending or self._header is not None:
            self._pending += data
            if len(self._pending) < self._missing:
                return []
            data = bytes(self._pending)
            self._pending.clear()
        found, at, size = [], 0, len(data)
        while True:
            if self._header is None:
                if size - at < 4:
                    self._missing = 4
                    break
                length = _length(data[at : at + 4])
                if size - at < 4 + length:
                    self._missing = 4 + length
                    break
                self._header = _parse(data[at + 4 : at + 4 + length])
                at += 4 + length
            wanted = self._header["body_bytes"]
            if size - at < wanted:
                self._missing = wanted
                break
            found.append((self._header, data[at : at + wanted]))
            at += wanted
            self._header = None
        self._pending += data[at:]
        return found


def read_blocking(file: BufferedIOBase) -> tuple[dict[str, Any], bytes] | None:
    """Read the next frame from a file object; return None at the end of the stream.

    Raises:
        FrameError: The frame is damaged or cut short.
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
    """Sends frames from several threads, one whole frame at a time.

    Args:
        file: Stream to the peer.
    """

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._writing = threading.Lock()

    def send(self, header: dict[str, Any], body: bytes | memoryview = b"") -> None:
        """Send one frame.

        Raises:
            OSError: The peer closed the stream.
        """
        with self._writing:
            write_blocking(self._file, header, body)
