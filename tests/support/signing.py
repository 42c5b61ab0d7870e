"""Keys and signatures for tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edged.signing.ed25519 import read_private_key, sign, write_key_pair
from edged.signing.statement import Statement


class Signer:
    """A key pair, and what is signed with it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.private, self.key = write_key_pair(folder / name)
        self.public = folder / self.key.name

    def signature(self, data: bytes, model: str, version: int) -> bytes:
        """Return the contents of a signature file."""
        statement = Statement(model, version, hashlib.sha256(data).hexdigest(), len(data), "signed.pt")
        return sign(statement, [read_private_key(self.private)]).to_json()

    def write(self, file: Path, model: str, version: int) -> Path:
        """Write the signature of a file next to it, and return its path."""
        path = file.with_name(file.name + ".sig")
        path.write_bytes(self.signature(file.read_bytes(), model, version))
        return path
