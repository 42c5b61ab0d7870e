from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http.arguments import read_arguments


def read(body: bytes, **headers: str) -> dict[str, Any]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": listed}, receive)
    return asyncio.run(read_arguments(request, '{"to": 3}'))


def test_an_object_and_an_empty_body() -> None:
    assert read(b' {"to": 7} ') == {"to": 7}
    assert read(b"") == read(b" \n") == {}


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b"7", b"[" * 50_000, b'{"to": ' + b"9" * 5000 + b"}"])
def test_what_is_no_object(body: bytes) -> None:
    with pytest.raises(HTTPException) as caught:
        read(body)
    assert caught.value.status_code == 400
    assert caught.value.detail.startswith("the body has value b")
    assert caught.value.detail.endswith('; send a JSON object, for example {"to": 3}')
    assert len(caught.value.detail) < 200


def test_a_body_that_is_refused_unread() -> None:
    with pytest.raises(HTTPException, match=r'413: the body is over 65536 bytes; send for example {"to": 3}'):
        read(bytes(65537))
    with pytest.raises(HTTPException, match="415: Content-Encoding has value 'gzip'"):
        read(b"", content_encoding="gzip")
