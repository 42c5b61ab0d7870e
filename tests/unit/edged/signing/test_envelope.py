"""Envelopes of DSSE, against the implementation of its authors."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as ReferenceEnvelope

from edged.errors import SignatureError
from edged.signing.envelope import MAX_FILE_BYTES, MAX_SIGNATURES, Envelope, Signature

signatures = st.builds(Signature, st.text(max_size=64), st.binary(max_size=100))
envelopes = st.builds(
    Envelope, st.binary(max_size=300), st.lists(signatures, min_size=1, max_size=MAX_SIGNATURES).map(tuple)
)
GOOD = Envelope(b'{"a": 1}', (Signature("id", b"\0" * 64),))


@given(envelopes)
def test_an_envelope_reads_what_it_writes(envelope: Envelope) -> None:
    assert Envelope.from_json(envelope.to_json()) == envelope


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_the_authors_of_the_format_read_it_alike(payload: bytes, value: bytes) -> None:
    envelope = Envelope(payload, (Signature("id", value),))
    theirs = ReferenceEnvelope.from_dict(json.loads(envelope.to_json()))
    assert theirs.pae() == envelope.signed_bytes
    assert theirs.payload == payload
    assert Envelope.from_json(json.dumps(theirs.to_dict()).encode()) == envelope


@given(st.binary(max_size=300))
def test_bytes_are_no_envelope(data: bytes) -> None:
    with pytest.raises(SignatureError):
        Envelope.from_json(data)


@given(st.data())
def test_another_spelling_of_base64_is_refused(data: st.DataObject) -> None:
    """No two files mean the same signature: bits that base64 does not use are zero."""
    text = base64.b64encode(data.draw(st.binary(min_size=1, max_size=50))).decode()
    at = data.draw(st.integers(0, len(text) - 1))
    other = text[:at] + data.draw(st.sampled_from("AQgw/+=_- \n")) + text[at + 1 :]
    envelope = json.loads(GOOD.to_json())
    envelope["payload"] = other
    try:
        found = Envelope.from_json(json.dumps(envelope).encode())
    except SignatureError:
        return
    assert base64.b64encode(found.payload).decode() == other


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"payloadType": "text/plain"}, "its payloadType is 'text/plain'"),
        ({"payload": 7}, "its payload is not base64"),
        ({"payload": "_-8="}, "its payload is not base64"),
        ({"payload": "AB=="}, "exact spelling"),
        ({"signatures": []}, "1 to 16 signatures"),
        ({"signatures": [{"sig": ""}] * 17}, "1 to 16 signatures"),
        ({"signatures": {"sig": ""}}, "1 to 16 signatures"),
        ({"signatures": [7]}, "no JSON object"),
        ({"signatures": [{"keyid": 7, "sig": ""}]}, "keyid is no text"),
        ({"signatures": [{"keyid": "a"}]}, "its sig is not base64"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        Envelope.from_json(json.dumps({**json.loads(GOOD.to_json()), **change}).encode())


def test_a_large_file_is_not_parsed() -> None:
    with pytest.raises(SignatureError, match="over 64 KiB"):
        Envelope.from_json(b" " * (MAX_FILE_BYTES + 1))
