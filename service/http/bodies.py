"""Bodies of inference requests and replies in HTTP. Imports no numpy: bodies are not parsed here."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.http.forms import JSON_BYTES, has_files
from service.ipc.messages import Reply

_MAX_DIGITS = 18


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the whole body of a request.

    Raises:
        HTTPException: 413, it is larger than `max_bytes`; 415, it is compressed; 400, the client disconnected.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPException(415, f"Content-Encoding has value {encoding!r:.80}; send the body uncompressed")
    too_large = HTTPException(413, f"body is over serve.max_body_bytes = {max_bytes}; send fewer images per request")
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise too_large
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                raise too_large
            if piece:  # the last one is empty: a single piece is not copied
                pieces.append(piece)
    except ClientDisconnect:
        raise HTTPException(400, "the client disconnected") from None
    return b"".join(pieces)


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


def response_of(reply: Reply) -> Response:
    """Return the reply of a generation as an HTTP response."""
    if reply.body.media_type is not None:
        return Response(reply.body.content, reply.status, media_type=reply.body.media_type)
    if reply.body.json_bytes is None:
        return Response(reply.body.content, reply.status, media_type="application/json")
    headers = {JSON_BYTES: str(reply.body.json_bytes)}
    return Response(reply.body.content, reply.status, headers, media_type="application/octet-stream")
