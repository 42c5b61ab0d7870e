"""The commands of signatures: `edged keygen`, `edged sign`, `edged verify`. They need no daemon."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from edged.artifacts.digest import sha256_file
from edged.atomic import write_atomic
from edged.errors import SignatureError, UnsignedError, UsageError
from edged.signing.keys import read_public_key, short, shown
from edged.signing.statement import Statement
from edged.signing.verification import read_signature, signature_of
from service.cli.output import print_result
from service.config.sections import MODEL_NAME
from service.units import printable


def keygen(options: Namespace) -> int:
    """Generate a key pair (`edged keygen NAME`); the private key is never printed."""
    from edged.signing.ed25519 import write_key_pair

    private, public = write_key_pair(options.name)
    result = {"private_key": str(private), "public_key": str(private.with_name(public.name)), "key_id": public.id}
    print_result(options, result, _key_pair)
    return 0


def _key_pair(result: dict[str, Any]) -> str:
    return (
        f"{result['private_key']} signs: keep it where checkpoints are made, and never on a device\n"
        f"{result['public_key']} verifies: name it in trust.keys of the devices' config\n"
        f"key ID {result['key_id']}"
    )


def sign(options: Namespace) -> int:
    """Write the signature of a checkpoint next to it (`edged sign FILE`)."""
    from edged.signing.ed25519 import others_may_read, read_private_key
    from edged.signing.ed25519 import sign as sign_statement

    if not MODEL_NAME.fullmatch(options.model):
        raise UsageError(f"--model has value {options.model!r:.80}; give the name of a model of the devices' config")
    keys = [read_private_key(path) for path in options.key]
    for path in options.key:
        if others_may_read(path):
            sys.stderr.write(f"edged: warning: others may read {path}; `chmod 600 {path}`\n")
    sha256, size = _digest(options.file)
    statement = Statement(options.model, options.version, sha256, size, printable(options.file.name))
    envelope = sign_statement(statement, keys)
    target = options.out or signature_of(options.file)
    write_atomic(target, envelope.to_json(), 0o644)
    result = {
        "signature": str(target),
        **_described(statement),
        "key_ids": [each.key_id for each in envelope.signatures],
    }
    print_result(options, result, _signed)
    return 0


def _signed(result: dict[str, Any]) -> str:
    by = ", ".join(short(key_id) for key_id in result["key_ids"])
    what = f"version {result['version']} of {result['model']}, signed by {by}"
    return f"{result['signature']}: {what}; deliver it with the file"


def verify(options: Namespace) -> int:
    """Check a checkpoint and its signature as a device does (`edged verify FILE`)."""
    from edged.signing.ed25519 import verified_by
    from edged.signing.verification import verify as verify_signature

    keys = [read_public_key(path) for path in options.key]
    path = options.signature or signature_of(options.file)
    verified = verify_signature(_read(path, options.file), path.name, keys, verified_by)
    statement = verified.statement
    if options.model is not None and options.model != statement.model:
        raise SignatureError(f"{path.name} is for model {statement.model}, not {options.model}; sign the file for it")
    sha256, _ = _digest(options.file)
    if sha256 != statement.sha256:
        reason = f"{options.file} has sha256 {sha256}, {path.name} is of {statement.sha256}"
        raise SignatureError(f"{reason}; transfer both again, or sign the file")
    result = {"signature": str(path), **_described(statement), "key": verified.key.name, "key_id": verified.key.id}
    print_result(options, result, _verified)
    return 0


def _verified(result: dict[str, Any]) -> str:
    by = shown(result["key"], result["key_id"])
    return f"ok: version {result['version']} of {result['model']}, signed by {by}"


def _read(path: Path, file: Path) -> bytes:
    try:
        data = read_signature(path)
    except OSError as error:
        remedy = "give a regular file that you may read, no link"
        raise SignatureError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    if data is None:
        raise UnsignedError(f"{file} has no {path} next to it; write it with `edged sign`")
    return data


def _digest(file: Path) -> tuple[str, int]:
    """Return the SHA-256 in hex and the size of a file.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return sha256_file(file), file.stat().st_size
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; give the path of a checkpoint") from None


def _described(statement: Statement) -> dict[str, Any]:
    return {
        "model": statement.model,
        "version": statement.version,
        "sha256": statement.sha256,
        "bytes": statement.file_bytes,
        "file_name": statement.name,
    }
