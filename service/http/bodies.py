"""Bodies of inference requests and replies in HTTP. Imports no numpy: bodies are not parsed here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.http.errors import RETRY
from service.http.forms import JSON_BYTES, has_files
from service.http.protocol import TAKEN, TOO_SLOW
from service.ipc.messages import Reply
from service.ipc.shared_memory import BodyMemory, NoRoomError, StoredBody

_MAX_DIGITS = 18
_JSON_BYTES_FIELD = JSON_BYTES.lower().encode()
_FIRST_BYTES = 64 << 10  # for a body whose length is not announced; doubled as needed


class BodyLimits(NamedTuple):
    """Limits of the bodies of inference requests.

    Attributes:
        body_bytes: Largest body.
        json_bytes: Largest JSON.
        wait_s: Seconds that a body may wait for memory, each time.
    """

    body_bytes: int
    json_bytes: int
    wait_s: float


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the whole body of a request.

    Raises:
        HTTPException: 413, it is larger than `max_bytes`; 415, it is compressed; 400, the client disconnected; 408, it
            was too slow.
    """
    _check_encoding(request)
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise _too_large(max_bytes)
    pieces, size = [], 0
    async for piece in _pieces(request):
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
    return b"".join(pieces)


async def store_body(request: Request, memory: BodyMemory, limits: BodyLimits) -> tuple[StoredBody, int | None]:
    """Read the whole body of an inference request into the memory that is shared with its generation.

    Returns:
        The body, which the caller releases, and the length of its JSON; None if it is all JSON.

    Raises:
        HTTPException: See `check_body` and `read_body`; 503, there is no room in the memory.
    """
    size, json_bytes = check_body(request, limits)
    try:
        body = await memory.reserve(_FIRST_BYTES if size is None else size, json_bytes, limits.wait_s, arriving=True)
        if (taken := request.scope.get(TAKEN)) is not None:
            taken()
        try:
            await _fill(body, request, limits, json_bytes, announced=size is not None)
        except BaseException:
            body.release()
            raise
    except NoRoomError as error:
        raise HTTPException(503, str(error), RETRY) from None
    return body, json_bytes


async def _fill(
    body: StoredBody, request: Request, limits: BodyLimits, json_bytes: int | None, *, announced: bool
) -> None:
    """Write the pieces of a body to its place, whose memory grows with them."""
    size = 0
    async for piece in _pieces(request):
        end = size + len(piece)
        if not announced:
            check_size(end, limits, json_bytes)
        if end > body.reserved:
            await body.grow(limits.wait_s, min(2 * end, len(body) if announced else limits.body_bytes))
        body.view[size:end] = piece
        size = end
    if size < len(body):
        body.shrink(size)


def check_body(request: Request, limits: BodyLimits) -> tuple[int | None, int | None]:
    """Check what the head of an inference request says of its body.

    Returns:
        Length of the body, None if it is not announced; and length of its JSON, None if it is all JSON.

    Raises:
        HTTPException: 415, the body is compressed; 413, it is too large; 400, the length of the JSON is no number.
    """
    _check_encoding(request)
    announced = request.headers.get("content-length")
    size, json_bytes = None if announced is None else int(announced), json_bytes_of(request)
    if size is not None:
        check_size(size, limits, json_bytes)
    return size, json_bytes


def check_size(size: int, limits: BodyLimits, json_bytes: int | None) -> None:
    """Check the size of a body, and of its JSON.

    Raises:
        HTTPException: 413, one of them is too large.
    """
    if size > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    json_size = size if json_bytes is None else min(size, json_bytes)
    if json_size > limits.json_bytes:
        raise HTTPException(
            413,
            f"{json_size} bytes of JSON are over serve.max_json_bytes = {limits.json_bytes}; send tensors and images as"
            f" bytes, with the binary tensor data extension (header {JSON_BYTES})",
        )


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPException(415, f"Content-Encoding has value {encoding!r:.80}; send the body uncompressed")


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"body is over serve.max_body_bytes = {max_bytes}; send fewer images per request")


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the pieces of a body that are not empty."""
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        if TOO_SLOW in request.scope:
            raise HTTPException(408, "the body was too slow") from None
        raise HTTPException(400, "the client disconnected") from None


def json_bytes_of(request: Request) -> int | None:
    """Return the length of the JSON in the body in bytes: 0 for image files; None if the body is all JSON.

    Raises:
        HTTPException: 400, the header is not a number of bytes.
    """
    text = request.headers.get(JSON_BYTES)
    if text is None:
        return 0 if has_files(request) else None
    if not (text.isascii() and text.isdecimal()) or len(text) > _MAX_DIGITS:
        raise HTTPException(400, f"{JSON_BYTES} has value {text!r:.80}; give the length of the JSON in bytes")
    return int(text)


class DirectAnswer(NamedTuple):
    """A response as the protocol of a connection sends it; `Response` has the same attributes, and takes 5 us to make.

    Attributes:
        status_code: HTTP status.
        raw_headers: Names and values of its fields.
        body: Its content.
    """

    status_code: int
    raw_headers: Sequence[tuple[bytes, bytes]]
    body: bytes | memoryview


def answer_of(reply: Reply) -> DirectAnswer:
    """Return the reply of a generation as the answer to an HTTP request."""
    content, json_bytes, _ = reply.body
    fields = [(b"content-length", b"%d" % len(content)), (b"content-type", _media_type(reply).encode("latin-1"))]
    if json_bytes is not None:
        fields.append((_JSON_BYTES_FIELD, b"%d" % json_bytes))
    return DirectAnswer(reply.status, fields, content)


def response_of(reply: Reply) -> Response:
    """Return the reply of a generation as a response of Starlette."""
    headers = {} if reply.body.json_bytes is None else {JSON_BYTES: str(reply.body.json_bytes)}
    return Response(reply.body.content, reply.status, headers, _media_type(reply))


def _media_type(reply: Reply) -> str:
    if reply.body.media_type is not None:
        return reply.body.media_type
    return "application/json" if reply.body.json_bytes is None else "application/octet-stream"
