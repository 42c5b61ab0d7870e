"""The messages of inference, which both ends of a channel and the HTTP server share. Imports no numpy."""

from __future__ import annotations

from typing import NamedTuple


class RequestError(Exception):
    """The request is invalid; the message becomes the body of the response.

    Args:
        message: What is wrong with it.
        status: HTTP status of the response.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Form(NamedTuple):
    """What an HTTP request says next to its body, where that is more than the protocol has.

    Attributes:
        content_type: Type of a body of image files; "" for a body of the protocol.
        query: Query string of the address, percent-encoded.
        accept: Header Accept; "" if there is none.
    """

    content_type: str = ""
    query: str = ""
    accept: str = ""


class Body(NamedTuple):
    """The body of an HTTP message.

    Attributes:
        content: JSON, optionally followed by tensors.
        json_bytes: Length of the JSON in bytes, for Inference-Header-Content-Length; None if it is the whole content.
        media_type: Type of a content without JSON, a picture; None for all others.
    """

    content: bytes | memoryview
    json_bytes: int | None = None
    media_type: str | None = None

    def split(self) -> tuple[bytes, memoryview]:
        """Return the JSON, and a view of the bytes after it; see `parts`."""
        text, tail = self.parts()
        return bytes(text), tail

    def parts(self) -> tuple[memoryview, memoryview]:
        """Return views of the JSON, and of the bytes after it.

        Raises:
            RequestError: `json_bytes` is larger than the body.
        """
        size = len(self.content)
        length = size if self.json_bytes is None else self.json_bytes
        if not 0 <= length <= size:
            raise RequestError(f"Inference-Header-Content-Length is {length}, but the body has {size} bytes")
        view = memoryview(self.content)
        return view[:length], view[length:]


class Pass(NamedTuple):
    """One forward pass of a network, in nanoseconds.

    Attributes:
        images: Number of images.
        input_ns: Time to parse the requests and to decode their images.
        infer_ns: Time of the engine.
        output_ns: Time to make outputs and to format them.
    """

    images: int
    input_ns: int
    infer_ns: int
    output_ns: int


class Work(NamedTuple):
    """What a generation did for one request, in nanoseconds.

    Attributes:
        images: Number of images of the request.
        started_ns: When the generation began to read it, by time.monotonic_ns(): one clock for all processes.
        waited_ns: Time that the prepared request waited for others of its batch, and for the batch before.
        input_ns: Time to parse it and to decode its images.
        infer_ns: Time of the engine, for the whole batch.
        output_ns: Time to make outputs and to format them, for the whole batch.
        passes: Forward passes of its batch; empty for all but the first request of a batch, so that each counts once.
    """

    images: int
    started_ns: int
    waited_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    passes: tuple[Pass, ...] = ()


class Reply(NamedTuple):
    """The reply to one request.

    Attributes:
        status: HTTP status.
        body: HTTP body.
        seconds: Seconds that the generation took; 0 until it is known.
        work: What the generation did; None until it is known, and for a request that it could not read.
    """

    status: int
    body: Body
    seconds: float = 0.0
    work: Work | None = None
