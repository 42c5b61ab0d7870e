"""Signature files as they are delivered."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edged.errors import SignatureError
from edged.signing.ed25519 import sign, verified_by
from edged.signing.envelope import MAX_FILE_BYTES, Envelope, Signature, signed_bytes
from edged.signing.keys import PublicKey
from edged.signing.statement import Statement
from edged.signing.verification import peek, read_signature, signature_of, verify

PRIVATE, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
STATEMENT = Statement("shelf", 7, "0" * 64, 5)
FILE = sign(STATEMENT, [PRIVATE]).to_json()


def public(key: Ed25519PrivateKey, name: str = "a.pub") -> PublicKey:
    return PublicKey(name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def test_a_signature_says_what_was_signed_and_by_which_key() -> None:
    keys = [public(OTHER, "b.pub"), public(PRIVATE)]
    verified = verify(FILE, "best.pt.sig", keys, verified_by)
    assert (verified.statement, verified.key) == (STATEMENT, keys[1])
    assert peek(FILE) == STATEMENT


def test_a_flipped_bit_is_refused_or_changes_nothing_that_is_signed() -> None:
    """What is not signed are hints and blanks; a file that is accepted means what it meant."""
    accepted = set()
    for bit in range(8 * len(FILE)):
        changed = bytearray(FILE)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(SignatureError):
            accepted.add(verify(bytes(changed), "best.pt.sig", [public(PRIVATE)], verified_by).statement)
    assert accepted <= {STATEMENT}


def test_a_file_that_is_cut_off_is_refused() -> None:
    for length in range(len(FILE) - 2):
        with pytest.raises(SignatureError, match=r"best\.pt\.sig is no signature of a checkpoint"):
            verify(FILE[:length], "best.pt.sig", [public(PRIVATE)], verified_by)
        assert peek(FILE[:length]) is None


def test_an_unknown_key_is_named_with_those_that_are_accepted() -> None:
    with pytest.raises(SignatureError, match="by no accepted key") as raised:
        verify(FILE, "best.pt.sig", [public(OTHER, "b.pub")], verified_by)
    assert public(PRIVATE).id[:16] in str(raised.value)
    assert public(OTHER, "b.pub").shown in str(raised.value)


def test_a_signature_of_something_else_by_an_accepted_key_is_refused() -> None:
    """The key signs other things, too: another type of payload, and another statement."""
    plain = Envelope(STATEMENT.to_json(), (Signature("", PRIVATE.sign(STATEMENT.to_json())),))
    with pytest.raises(SignatureError, match="by no accepted key"):
        verify(plain.to_json(), "best.pt.sig", [public(PRIVATE)], verified_by)
    payload = STATEMENT.to_json().replace(b"checkpoint/v1", b"calibration/v1")
    other = Envelope(payload, (Signature("", PRIVATE.sign(signed_bytes(payload))),))
    with pytest.raises(SignatureError, match="has predicateType"):
        verify(other.to_json(), "best.pt.sig", [public(PRIVATE)], verified_by)


def test_a_forged_statement_is_not_read() -> None:
    forged = Envelope(b"not even JSON", Envelope.from_json(FILE).signatures)
    with pytest.raises(SignatureError, match="was changed, or is forged"):
        verify(forged.to_json(), "best.pt.sig", [public(PRIVATE)], verified_by)


def test_only_a_small_regular_file_is_read(tmp_path: Path) -> None:
    path = signature_of(tmp_path / "best.pt")
    assert path == tmp_path / "best.pt.sig"
    assert read_signature(path) is None
    path.write_bytes(FILE)
    assert read_signature(path) == FILE
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(SignatureError, match="is over 64 KiB"):
        read_signature(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        read_signature(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SignatureError, match="no regular file"):
        read_signature(path)
