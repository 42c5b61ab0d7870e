"""Ed25519 by the package cryptography: key pairs as PEM files, signing, verifying. Not for the supervisor."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edged.atomic import as_state_error, fsync_directory
from edged.errors import UsageError
from edged.signing.envelope import Envelope, Signature, signed_bytes
from edged.signing.keys import PublicKey
from edged.signing.statement import Statement

PRIVATE_SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"

_MAX_FILE_BYTES = 16 << 10


def write_key_pair(base: Path) -> tuple[Path, PublicKey]:
    """Generate a key pair, and write it as `base`.key, which only its owner may read, and `base`.pub.

    Returns:
        Path of the private key, and the public key.

    Raises:
        UsageError: One of the files exists, or `base` has no name.
        StateError: The folder cannot be written.
    """
    if not base.name:
        raise UsageError(f"NAME has value {str(base)!r}; give the name of the two files without their suffixes")
    private_path, public_path = (base.with_name(base.name + suffix) for suffix in (PRIVATE_SUFFIX, PUBLIC_SUFFIX))
    for path in (private_path, public_path):
        if os.path.lexists(path):
            raise UsageError(f"{path} already exists, and a key is never overwritten; choose another name")
    key = Ed25519PrivateKey.generate()
    _create(private_path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _create(public_path, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    fsync_directory(base.parent)
    return private_path, _public(key, public_path.name)


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key that is not encrypted.

    Raises:
        UsageError: The file cannot be read, or is no such key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the file of a private key") from None
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise UsageError(f"{path} is encrypted; decrypt it with `openssl pkey -in {path} -out FILE`") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no private key in PEM; `edged keygen` writes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is a private key of another kind; give one of Ed25519, as `edged keygen` writes it")
    return key


def others_may_read(path: Path) -> bool:
    """Return whether users other than its owner may read a file."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def sign(statement: Statement, keys: Sequence[Ed25519PrivateKey]) -> Envelope:
    """Sign a statement with each of the keys."""
    payload = statement.to_json()
    message = signed_bytes(payload)
    return Envelope(payload, tuple(Signature(_public(key, "").id, key.sign(message)) for key in keys))


def verified_by(message: bytes, signatures: Sequence[bytes], keys: Sequence[bytes]) -> int | None:
    """Return the index of the first key by which one of the signatures is made; None if there is none.

    Args:
        message: What is signed.
        signatures: Signatures, of any length.
        keys: Public keys, 32 bytes each.
    """
    for index, raw in enumerate(keys):
        key = Ed25519PublicKey.from_public_bytes(raw)
        if any(_is_by(key, signature, message) for signature in signatures):
            return index
    return None


def _is_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _public(key: Ed25519PrivateKey, name: str) -> PublicKey:
    return PublicKey(name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist, with its permissions from the start."""
    with as_state_error(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
