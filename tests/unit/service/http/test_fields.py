"""Header fields with an index."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.requests import Request

from service.http.fields import FieldIndex, IndexedRequest

NAMES = st.sampled_from([b"accept", b"content-type", b"x-\xe9"])
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=8)), max_size=6)


@given(FIELDS)
def test_fields_are_found_as_starlette_finds_them(raw: list[tuple[bytes, bytes]]) -> None:
    indexed, plain = FieldIndex(raw), Headers(raw=raw)
    for name in ("accept", "Content-Type", "x-\xe9", "missing"):
        assert indexed.get(name) == plain.get(name)
        assert indexed.get(name, "other") == plain.get(name, "other")
        assert (name in indexed) == (name in plain)
        assert indexed.getlist(name) == plain.getlist(name)
    assert indexed.items() == plain.items()


def test_a_request_has_the_fields_of_its_scope() -> None:
    scope = {"type": "http", "headers": [(b"accept", b"image/png"), (b"accept", b"*/*")]}
    request, plain = IndexedRequest(scope), Request(scope)
    assert request.headers["Accept"] == plain.headers["accept"] == "image/png"
