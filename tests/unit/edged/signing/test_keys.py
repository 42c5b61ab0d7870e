"""Public keys as files, against OpenSSL's reading of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from edged.errors import UsageError
from edged.signing.keys import read_public_key


def public_pem(key: object) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [lambda pem: pem, lambda pem: pem.replace(b"\n", b"\r\n"), lambda pem: b"\n" + pem])
def test_a_public_key_is_read_as_openssl_reads_it(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "release.pub"
    path.write_bytes(change(public_pem(Ed25519PrivateKey.generate())))
    key, theirs = read_public_key(path), load_pem_public_key(path.read_bytes())
    assert key.name == "release.pub"
    assert key.raw == theirs.public_bytes(Encoding.Raw, PublicFormat.Raw)
    der = theirs.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.id == hashlib.sha256(der).hexdigest()
    assert key.shown == f"release.pub ({key.id[:16]})"


@pytest.mark.parametrize(
    "other",
    [
        Ed448PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_a_key_of_another_kind_is_refused(tmp_path: Path, other: Callable[[], object]) -> None:
    path = tmp_path / "release.pub"
    path.write_bytes(public_pem(other()))
    with pytest.raises(UsageError, match="of another kind"):
        read_public_key(path)


def test_a_private_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem)
    with pytest.raises(UsageError, match="is a private key") as raised:
        read_public_key(path)
    assert pem.decode().splitlines()[1] not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no public key in PEM"),
        (b"ssh-ed25519 AAAA", "no public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAA\n-----END PUBLIC KEY-----\n", "damaged PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "of another kind"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "release.pub"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=reason):
        read_public_key(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_public_key(tmp_path / "release.pub")
