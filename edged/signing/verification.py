"""Whether a signature file is by an accepted key, and what it says. The caller passes what verifies it: see `Verify`.

The file that is signed is not needed for this: its digest is compared by the caller, before anything of it is parsed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.errors import SignatureError, UnsignedError
from edged.signing.envelope import MAX_FILE_BYTES, Envelope
from edged.signing.keys import PublicKey, all_shown, short
from edged.signing.statement import Statement

SUFFIX = ".sig"

# (message, signatures, public keys) -> index of the first key by which one of the signatures is made, or None.
Verify = Callable[[bytes, tuple[bytes, ...], tuple[bytes, ...]], int | None]


@dataclass(frozen=True)
class Verified:
    """A signature file that was verified.

    Attributes:
        statement: What is signed.
        key: Key by which it is signed.
    """

    statement: Statement
    key: PublicKey


def signature_of(path: Path) -> Path:
    """Return the path of the signature file of `path`: NAME.sig next to it."""
    return path.parent / (path.name + SUFFIX)  # `with_name` refuses "." and "/"


def unsigned_error(file: str, model: str) -> UnsignedError:
    """Return the error of a file without a signature, whose model needs one.

    Args:
        file: Name or path of the file, for the message.
        model: Name of the model.
    """
    command = f"edged sign {file} --model {model} --version N --key FILE"
    name = signature_of(Path(file)).name
    return UnsignedError(f"{file} has no {name} next to it, and {model} has trust.keys; write it with `{command}`")


def read_signature(path: Path) -> bytes | None:
    """Return the contents of a signature file without following a link; None if it does not exist.

    Raises:
        SignatureError: It is no regular file, or too large.
        OSError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SignatureError(f"{path.name} is no regular file; put the signature itself there")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SignatureError(f"{path.name} is over {MAX_FILE_BYTES >> 10} KiB; put the signature there")
    return data


def verify(data: bytes, name: str, keys: Sequence[PublicKey], verified_by: Verify) -> Verified:
    """Verify a signature file; nothing that it says is used before.

    Args:
        data: Contents of the signature file.
        name: Its name, for messages.
        keys: Accepted keys, at least one.
        verified_by: Function that verifies.

    Raises:
        SignatureError: It is malformed, or made by no accepted key.
    """
    try:
        envelope = Envelope.from_json(data)
    except SignatureError as error:
        raise _malformed(name, error) from None
    signatures = tuple(each.value for each in envelope.signatures)
    index = verified_by(envelope.signed_bytes, signatures, tuple(key.raw for key in keys))
    if index is None:
        raise SignatureError(_by_no_key(envelope, name, keys))
    try:
        return Verified(Statement.from_json(envelope.payload), keys[index])
    except SignatureError as error:
        raise _malformed(name, error) from None


def peek(data: bytes) -> Statement | None:
    """Return what a signature file claims without verifying it, as a hint; None if it is malformed."""
    try:
        return Statement.from_json(Envelope.from_json(data).payload)
    except SignatureError:
        return None


def _malformed(name: str, error: SignatureError) -> SignatureError:
    return SignatureError(f"{name} is no signature of a checkpoint: {error}; write it with `edged sign`")


def _by_no_key(envelope: Envelope, name: str, keys: Sequence[PublicKey]) -> str:
    claimed = {each.key_id for each in envelope.signatures}
    if changed := [key for key in keys if key.id in claimed]:
        return (
            f"{name} names the key {all_shown(changed)}, which did not make it: it was changed, or is forged; transfer"
            " it again, or sign the file again"
        )
    ids = ", ".join(sorted(repr(short(key_id)) for key_id in claimed))
    return (
        f"{name} is signed by no accepted key, but by {ids}; accepted: {all_shown(keys)}; sign the file with one of"
        " these, or accept that key"
    )
