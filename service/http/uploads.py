"""Upload of a checkpoint over HTTP: it is renamed into the drop folder once it is complete."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

from edged.atomic import as_state_error
from edged.errors import CheckpointError
from edged.signing.envelope import MAX_FILE_BYTES
from edged.signing.verification import SUFFIX as SIGNATURE_SUFFIX
from service.http.parameters import ParameterError
from service.intake.content import is_checkpoint, named
from service.intake.drop_folder import is_ignored, write_sidecar
from service.intake.temporaries import temporary_in
from service.units import format_bytes, printable

_MAX_NAME = 200  # bytes; filesystems allow 255, and names get suffixes


class UploadError(CheckpointError):
    """The body is empty or too large, or ended early."""


async def receive(
    stream: AsyncIterator[bytes], folder: Path, name: str, max_bytes: int, *, with_checksum: bool = False
) -> dict[str, Any]:
    """Write a file while it is received.

    Args:
        stream: Contents of the file.
        folder: Drop folder of the model.
        name: Name of the file; replaces a file of this name that is still in the folder. FILE.sig is the signature of
            a file that follows.
        max_bytes: Largest size of a checkpoint in bytes.
        with_checksum: Whether to write the file's `.sha256` next to it.

    Returns:
        {"file_name", "sha256", "bytes"}.

    Raises:
        ParameterError: The name is not a valid file name, or the daemon ignores such files.
        UploadError: The file is empty, larger than `max_bytes`, or no checkpoint by its name and its first bytes.
        StateError: The folder cannot be written.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > _MAX_NAME:
        raise ParameterError(f"name has value {printable(name)!r:.80}; give the name of a file, without a folder")
    is_signature = name.endswith(SIGNATURE_SUFFIX)
    limit = (MAX_FILE_BYTES, "the limit of a signature") if is_signature else (max_bytes, "watch.max_bytes")
    if is_ignored(name.removesuffix(SIGNATURE_SUFFIX) or name):
        raise ParameterError(f"{printable(name)} looks like an unfinished file, which the daemon ignores; rename it")
    temporary = temporary_in(folder)
    with as_state_error(folder):
        try:
            with await asyncio.to_thread(temporary.open, "xb") as file:
                digest, size = await _copy(stream, file, *limit)
            if not is_signature and not named(name) and not await asyncio.to_thread(is_checkpoint, temporary):
                raise UploadError(
                    f"{printable(name)} is no checkpoint, by its name and its first bytes; send a .pt file"
                )
            if with_checksum and not is_signature:  # first: a file without it would be refused
                await asyncio.to_thread(write_sidecar, folder / name, digest)
            await asyncio.to_thread(temporary.replace, folder / name)
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
    return {"file_name": printable(name), "sha256": digest, "bytes": size}


async def _copy(stream: AsyncIterator[bytes], file: IO[bytes], max_bytes: int, limit: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    async for piece in stream:
        size += len(piece)
        if size > max_bytes:
            raise UploadError(f"the file is over {limit}, {format_bytes(max_bytes)}; send a smaller one")
        digest.update(piece)
        await asyncio.to_thread(file.write, piece)
    if size == 0:
        raise UploadError("the body is empty; send the file as it is")
    await asyncio.to_thread(_flush, file)
    return digest.hexdigest(), size


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
