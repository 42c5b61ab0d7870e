"""The messages of inference, which both ends of a channel and the HTTP server share. Imports no numpy."""

from __future__ import annotations

from typing import NamedTuple


class RequestError(Exception):
    """The request is invalid; the message becomes the body of a 400 response."""


class Body(NamedTuple):
    """The body of an HTTP message.

    Attributes:
        content: JSON, optionally followed by tensors.
        json_bytes: Length of the JSON in bytes, for Inference-Header-Content-Length; None if it is the whole content.
    """

    content: bytes | memoryview
    json_bytes: int | None = None

    def split(self) -> tuple[bytes, memoryview]:
        """Return the JSON, and a view of the bytes after it.

        Raises:
            RequestError: `json_bytes` is larger than the body.
        """
        size = len(self.content)
        length = size if self.json_bytes is None else self.json_bytes
        if not 0 <= length <= size:
            raise RequestError(f"Inference-Header-Content-Length is {length}, but the body has {size} bytes")
        return bytes(self.content[:length]), memoryview(self.content)[length:]


class Reply(NamedTuple):
    """The reply to one request.

    Attributes:
        status: HTTP status.
        body: HTTP body.
        seconds: Seconds that the generation took; 0 until it is known.
    """

    status: int
    body: Body
    seconds: float = 0.0
