"""Key pairs as files, and signatures against the implementation of the envelope's authors."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope as ReferenceEnvelope
from securesystemslib.signer import SSlibKey

from edged.errors import UsageError
from edged.signing.ed25519 import others_may_read, read_private_key, sign, verified_by, write_key_pair
from edged.signing.keys import read_public_key
from edged.signing.statement import Statement

STATEMENT = Statement("shelf", 7, "0" * 64, 5)


def pem(key: object, encryption: object = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())  # type: ignore[attr-defined]


def test_a_key_pair_is_two_files_and_the_private_one_is_its_owners(tmp_path: Path) -> None:
    path, public = write_key_pair(tmp_path / "release")
    assert path == tmp_path / "release.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not others_may_read(path)
    assert read_public_key(tmp_path / "release.pub") == public
    assert sign(STATEMENT, [read_private_key(path)]).signatures[0].key_id == public.id


@pytest.mark.parametrize("existing", ["release.key", "release.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UsageError, match=f"{existing} already exists"):
        write_key_pair(tmp_path / "release")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(existing, "precious")]


def test_the_authors_of_the_envelope_verify_what_is_signed(tmp_path: Path) -> None:
    pairs = [write_key_pair(tmp_path / name) for name in ("old", "new")]
    envelope = sign(STATEMENT, [read_private_key(path) for path, _ in pairs])
    keys = [load_pem_public_key((tmp_path / key.name).read_bytes()) for _, key in pairs]
    theirs = [SSlibKey.from_crypto(key, keyid=public.id) for key, (_, public) in zip(keys, pairs, strict=True)]
    accepted = ReferenceEnvelope.from_dict(json.loads(envelope.to_json())).verify(theirs, 2)
    assert accepted.keys() == {public.id for _, public in pairs}


def test_one_of_several_keys_is_enough(tmp_path: Path) -> None:
    (old, old_key), (new, new_key), (_, other) = (write_key_pair(tmp_path / name) for name in ("a", "b", "c"))
    envelope = sign(STATEMENT, [read_private_key(old), read_private_key(new)])
    both = [each.value for each in envelope.signatures]
    assert verified_by(envelope.signed_bytes, both, [other.raw, new_key.raw]) == 1
    assert verified_by(envelope.signed_bytes, both, [old_key.raw, new_key.raw]) == 0
    assert verified_by(envelope.signed_bytes, both[:1], [new_key.raw]) is None
    assert verified_by(envelope.signed_bytes, both, [other.raw]) is None
    assert verified_by(envelope.signed_bytes + b" ", both, [old_key.raw, new_key.raw]) is None
    assert verified_by(envelope.signed_bytes, [], [old_key.raw]) is None
    assert verified_by(envelope.signed_bytes, [b"", both[0][:63], both[0] + b"\0"], [old_key.raw]) is None


def test_every_flipped_bit_of_a_signature_and_of_a_statement_is_refused(tmp_path: Path) -> None:
    path, key = write_key_pair(tmp_path / "release")
    envelope = sign(STATEMENT, [read_private_key(path)])
    message, (value,) = envelope.signed_bytes, (each.value for each in envelope.signatures)
    assert verified_by(message, [value], [key.raw]) == 0
    flipped = (flip(value, bit) for bit in range(8 * len(value)))
    assert [each for each in flipped if verified_by(message, [each], [key.raw]) is not None] == []
    flipped = (flip(message, bit) for bit in range(8 * len(message)))
    assert [each for each in flipped if verified_by(each, [value], [key.raw]) is not None] == []


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret")), "is encrypted"),
        (pem(Ed448PrivateKey.generate()), "of another kind"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
        (b"secret", "no private key in PEM"),
    ],
)
def test_another_file_is_no_private_key_and_is_not_shown(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "release.key"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=reason) as raised:
        read_private_key(path)
    assert not any(line and line in str(raised.value) for line in data.decode().splitlines()[1:])


def test_a_missing_private_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"release\.key cannot be read: No such file"):
        read_private_key(tmp_path / "release.key")
