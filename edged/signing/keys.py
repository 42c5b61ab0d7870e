"""Public keys of Ed25519 as files: PEM, as OpenSSL and `edged keygen` write them. Imports no cryptography.

The DER encoding of such a key is 12 fixed bytes and the key (RFC 8410), so the supervisor can read the keys of its
configuration without a library of ten megabytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.errors import UsageError

KEY_BYTES = 32

_PREFIX = bytes.fromhex("302a300506032b6570032100")  # SubjectPublicKeyInfo of id-Ed25519, up to the key
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END PUBLIC KEY-----")
_MAX_FILE_BYTES = 16 << 10
_SHORT = 16  # hex digits of an ID for people


@dataclass(frozen=True)
class PublicKey:
    """A public key of Ed25519.

    Attributes:
        name: Name of its file.
        raw: The key, 32 bytes.
    """

    name: str
    raw: bytes

    @property
    def id(self) -> str:
        """SHA-256 of the key's DER encoding in hex, as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
        return hashlib.sha256(_PREFIX + self.raw).hexdigest()

    @property
    def shown(self) -> str:
        """Name and short ID, for messages."""
        return shown(self.name, self.id)


def shown(name: str, key_id: str) -> str:
    """Return a key's name with the start of its ID, for messages."""
    return f"{name} ({short(key_id)})"


def short(key_id: str) -> str:
    """Return the start of a key's ID, for messages."""
    return key_id[:_SHORT]


def all_shown(keys: Sequence[PublicKey]) -> str:
    """Return the names and short IDs of keys, for messages."""
    return ", ".join(key.shown for key in keys)


def read_public_key(path: Path) -> PublicKey:
    """Read a public key.

    Raises:
        UsageError: The file cannot be read, or is no public key of Ed25519 in PEM.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the file of a public key") from None
    if b"PRIVATE KEY-----" in data:
        raise UsageError(f"{path} is a private key; give the public one, and keep the private one away from devices")
    match = _PEM.fullmatch(data.strip())
    if match is None:
        raise UsageError(f"{path} is no public key in PEM; `edged keygen` writes one, and `openssl pkey -pubout`")
    try:
        der = base64.b64decode(b"".join(match[1].split()), validate=True)
    except binascii.Error:
        raise UsageError(f"{path} is a damaged PEM file; copy it again") from None
    if not der.startswith(_PREFIX) or len(der) != len(_PREFIX) + KEY_BYTES:
        raise UsageError(f"{path} is a public key of another kind; give one of Ed25519, as `edged keygen` writes it")
    return PublicKey(path.name, der[len(_PREFIX) :])
