"""Statements as JSON; what is not exactly one is refused."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import SignatureError, UsageError
from edged.signing.statement import MAX_VERSION, Statement

names = st.text(string.printable.strip() + " äß模型", min_size=1, max_size=255).filter(str.isprintable)
statements = st.builds(
    Statement,
    model=names,
    version=st.integers(1, MAX_VERSION),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    file_bytes=st.integers(0, MAX_VERSION),
    name=names,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
GOOD = Statement("shelf", 7, "0" * 64, 5, "best.pt")


@given(statements)
def test_a_statement_reads_what_it_writes(statement: Statement) -> None:
    assert Statement.from_json(statement.to_json()) == statement


def test_a_statement_is_one_of_in_toto() -> None:
    assert json.loads(GOOD.to_json()) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "best.pt", "digest": {"sha256": "0" * 64}}],
        "predicateType": "https://github.com/edged/edged/checkpoint/v1",
        "predicate": {"model": "shelf", "version": 7, "bytes": 5},
    }


def test_unknown_keys_are_ignored() -> None:
    data = json.loads(GOOD.to_json())
    data["predicate"]["trained_on"] = "coco"
    data["subject"][0]["digest"]["sha512"] = "00"
    assert Statement.from_json(json.dumps(data).encode()) == GOOD


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(SignatureError):
        Statement.from_json(data)


@given(
    st.sampled_from(["_type", "predicateType", "subject", "predicate", "model", "version", "bytes", "name", "sha256"]),
    json_values,
)
def test_a_value_is_of_its_type_and_in_its_range_or_refused(key: str, value: object) -> None:
    data = json.loads(GOOD.to_json())
    for holder in (data, data["predicate"], data["subject"][0], data["subject"][0]["digest"]):
        if key in holder:
            holder[key] = value
    try:
        found = Statement.from_json(json.dumps(data).encode())
    except SignatureError:
        return
    assert {"model": found.model, "version": found.version, "bytes": found.file_bytes, "name": found.name}[key] == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"_type": 1, "_type": 2}', "is not JSON"),  # one parser would take the first, another the last
        (b'{"version": NaN}', "is not JSON"),
        (b"[" * 40_000, "is not JSON"),
        (b"9" * 40_000, "is not JSON"),
        (b"[]", "is no JSON object"),
        (GOOD.to_json().decode().encode("utf-16"), "is not JSON"),
        (GOOD.to_json().replace(b"checkpoint/v1", b"checkpoint/v2"), "has predicateType"),
        (GOOD.to_json().replace(b'"version": 7', b'"version": true'), "of other types"),
        (GOOD.to_json().replace(b'"version": 7', b'"version": 7.0'), "of other types"),
        (GOOD.to_json().replace(b'"version": 7', b'"version": 0'), "version has value 0"),
        (GOOD.to_json().replace(b'"version": 7', b'"version": ' + b"9" * 400), "version has value 9999"),
        (GOOD.to_json().replace(b'"shelf"', b'"she\\nlf"'), "printable characters"),
        (GOOD.to_json().replace(b'"subject": [', b'"subject": [{}, '), "incomplete"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(data: bytes, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason) as raised:
        Statement.from_json(data)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        ("", 7, "0" * 64, 5),
        ("m", 0, "0" * 64, 5),
        ("m", 7, "G" * 64, 5),
        ("m", 7, "0" * 64, -1),
        ("m\n", 7, "0" * 64, 5),
    ],
)
def test_an_impossible_statement_is_not_made(values: tuple[str, int, str, int]) -> None:
    with pytest.raises(UsageError, match="has value"):
        Statement(*values)
