"""Documents that may be damaged, as values that can be written again."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.json_document import MALFORMED, parse_document

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=4))
def test_what_was_written_is_read(document: dict[str, object]) -> None:
    assert parse_document(json.dumps(document)) == document
    assert parse_document(json.dumps(document, ensure_ascii=False).encode()) == document


def test_numbers_that_json_cannot_spell_and_halves_of_characters() -> None:
    found = parse_document(
        '{"a": [NaN, Infinity, -Infinity, 1e400, 1e308], "\\ud800b": "x\\udc00", "c": "\\ud83d\\ude00"}'
    )
    assert found == {"a": [None, None, None, None, 1e308], "�b": "x�", "c": "\U0001f600"}
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "[" * 100_000, '{"a":' * 100_000, b"\xff", '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_document(text)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        json.dumps(parse_document(data), allow_nan=False, ensure_ascii=False).encode()


def test_what_using_a_malformed_document_raises() -> None:
    for use in (
        lambda: {}["a"],
        lambda: [][0],
        lambda: 1 + "a",
        lambda: (3).get("a"),
        lambda: float(10**400),
        lambda: 1 / 0,
        lambda: int("x"),
    ):
        with pytest.raises(MALFORMED):
            use()
