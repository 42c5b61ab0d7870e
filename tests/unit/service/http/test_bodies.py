"""Bodies as they come, piece by piece."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http.bodies import json_bytes_of, read_body, response_of
from service.ipc.messages import Body, Reply


def request(*pieces: bytes | None, **headers: str) -> Request:
    """A request whose body comes in pieces; None is a client that goes away."""
    waiting = iter(pieces)
    left = len(pieces)

    async def receive() -> dict[str, Any]:
        nonlocal left
        left -= 1
        piece = next(waiting)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": left > 0}

    listed = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": listed}, receive)


def refused(given: Request, max_bytes: int = 4) -> tuple[int, str]:
    with pytest.raises(HTTPException) as caught:
        asyncio.run(read_body(given, max_bytes))
    return caught.value.status_code, caught.value.detail


def test_pieces_are_put_together() -> None:
    assert asyncio.run(read_body(request(b"ab", b"", b"cd"), 4)) == b"abcd"
    assert asyncio.run(read_body(request(b"ab", content_encoding="identity"), 4)) == b"ab"


def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    reason = (413, "body is over serve.max_body_bytes = 4; send fewer images per request")
    assert refused(request(content_length="5")) == reason  # nothing is read
    assert refused(request(b"abc", b"de", b"never read")) == reason


def test_other_bodies_that_cannot_be_read() -> None:
    assert refused(request(b"ab", None)) == (400, "the client disconnected")
    assert refused(request(content_encoding="gzip")) == (
        415,
        "Content-Encoding has value 'gzip'; send the body uncompressed",
    )


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("17", 17), ("9" * 18, 10**18 - 1)])
def test_the_length_of_the_json(text: str, expected: int) -> None:
    assert json_bytes_of(request(inference_header_content_length=text)) == expected
    assert json_bytes_of(request()) is None


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1.0", "0x1", "9" * 19, "\xb2"])
def test_a_length_that_is_none(text: str) -> None:
    with pytest.raises(HTTPException, match="Inference-Header-Content-Length has value") as caught:
        json_bytes_of(request(inference_header_content_length=text))
    assert caught.value.status_code == 400
    assert len(caught.value.detail) < 200


def test_the_answer_says_where_its_json_ends() -> None:
    plain, binary = response_of(Reply(400, Body(b"{}"))), response_of(Reply(200, Body(b"{}\0", 2)))
    assert (plain.status_code, plain.media_type, plain.body) == (400, "application/json", b"{}")
    assert "inference-header-content-length" not in plain.headers
    assert (binary.status_code, binary.media_type, binary.body) == (200, "application/octet-stream", b"{}\0")
    assert binary.headers["inference-header-content-length"] == "2"
