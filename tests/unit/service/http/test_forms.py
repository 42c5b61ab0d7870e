"""What a request says next to its body goes to the generation as it is, within bounds."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http.forms import form_of, has_files
from service.ipc.messages import Form


def request(query: str = "", **headers: str) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": named, "query_string": query.encode("latin-1")})


@pytest.mark.parametrize(
    "headers", [{}, {"accept": "*/*"}, {"accept": "application/json"}, {"content_type": "application/json"}]
)
def test_a_request_of_the_protocol_says_nothing_else(headers: dict[str, str]) -> None:
    assert form_of(request(**headers)) is None
    assert not has_files(request(**headers))


@pytest.mark.parametrize("kind", ["image/jpeg", "Image/PNG", "multipart/form-data; boundary=x"])
def test_images_and_forms_are_bodies_of_files(kind: str) -> None:
    assert form_of(request(content_type=kind)) == Form(kind)
    raw = request(content_type=kind, inference_header_content_length="0")
    assert form_of(raw) is None  # a request of the protocol, as before
    assert (has_files(request(content_type=kind)), has_files(raw)) == (True, False)


def test_the_query_and_what_is_accepted_are_passed_on() -> None:
    assert form_of(request("confidence=0.5&%C3%A4=\xff")) == Form("", "confidence=0.5&%C3%A4=\xff")
    assert form_of(request(accept="Image/png")) == Form("", "", "Image/png")
    twice = Request({"type": "http", "headers": [(b"accept", b"image/png"), (b"accept", b"*/*")], "query_string": b""})
    assert form_of(twice) == Form("", "", "image/png, */*")


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("a" * 5000, {}, 414),
        ("", {"accept": "image/png" + "," * 5000}, 431),
        ("", {"content_type": "image/" + "x" * 5000}, 431),
    ],
)
def test_they_are_bounded(query: str, headers: dict[str, str], status: int) -> None:
    with pytest.raises(HTTPException, match="at most 4096") as caught:
        form_of(request(query, **headers))
    assert caught.value.status_code == status
