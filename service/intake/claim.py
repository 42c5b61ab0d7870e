"""Claims a file of the drop folder: copies it while hashing it, so that no other process can change it any more.

A rename would be cheaper, but a process that has the file open could still write to it after it was checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from edged.atomic import as_state_error, fsync_directory, temporary_sibling
from edged.errors import CheckpointError, DeferredError, EdgedError, SignatureError, TooLargeError
from edged.signing.verification import signature_of
from service.intake.drop_folder import fingerprint_of, sidecar_of
from service.intake.stability import Fingerprint
from service.storage.claim_origin import Origin, write_origin
from service.storage.paths import CLAIMED_NAME
from service.trust.signatures import Signed
from service.units import format_bytes, printable

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_MAX_SIDECAR_BYTES = 4096
# Errors of opening a file that its sender can end. All others (EIO, ESTALE, EMFILE) are the device's, and pass.
_FAULTS_OF_THE_FILE = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR})
# As sha256sum writes it, "<hex>  name", and as BSD does, "SHA256 (name) = <hex>".
_DIGEST = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")


class NotSettledError(DeferredError):
    """The file is still being written, or was replaced; it is tried again once it is quiet."""

    code = "not_settled"


class GoneError(DeferredError):
    """The file was taken away before it could be claimed."""

    code = "gone"


class UnreadableError(DeferredError):
    """The drop folder cannot be read now: a bad disk, a share that went away, too many open files."""

    code = "unreadable"


class ChecksumError(CheckpointError):
    """The file is not the one that its .sha256 describes."""

    code = "checksum"


class MissingChecksumError(CheckpointError):
    """The file has no `.sha256`, and drop.require_checksum asks for one."""

    code = "no_checksum"


@dataclass(frozen=True)
class Claim:
    """A claimed file.

    Attributes:
        sha256: SHA-256 of the contents, in hex.
        path: Path of the copy, claimed/<sha256>/file.
        bytes: Size in bytes.
        problem: Why the file could not be removed from the drop folder; None if it was.
    """

    sha256: str
    path: Path
    bytes: int
    problem: str | None = None


def claim(
    source: Path,
    claimed_root: Path,
    *,
    max_bytes: int | None = None,
    quiet: bool = True,
    require_checksum: bool = False,
    origin: Origin | None = None,
    journal: Callable[[str, int], object] = lambda sha256, size: None,
    exclusive: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    check_signature: Callable[[Path], Signed | None] = lambda source: None,
) -> Claim:
    """Copy a finished file to claimed/<sha256>/file and remove it, its checksum and its signature from the drop folder.

    After a crash at any step, claiming the same file again gives the same result.

    Args:
        source: File to claim; a `.sha256` file next to it is checked.
        claimed_root: The folder claimed/, on the filesystem of the state folder.
        max_bytes: Largest size of the file in bytes.
        quiet: Whether the file settled without changes. If not, a wrong checksum means that it is incomplete.
        require_checksum: Whether a file without a `.sha256` is rejected.
        origin: What is noted next to the copy, so that it can be given back if the journal is lost; None for nothing.
        journal: Called with SHA-256 and size once the copy is complete, before the source is removed: a crash in
            between must not leave a file that is not journaled.
        exclusive: Returns a context that keeps the end of another update of the same contents from removing the copy
            before it is journaled.
        check_signature: Called with `source` before it is copied; returns what its signature says, which is compared
            with the file, or None if it needs no signature. It raises a RejectedError, which ends the claim.

    Raises:
        NotSettledError: The file changed while it was copied.
        UnreadableError: Reading the drop folder failed; the file is not at fault.
        GoneError: The file does not exist any more.
        ChecksumError: The file does not match its `.sha256` or its signature, or the former contains no checksum.
        RejectedError: The signature is missing or not accepted.
        MissingChecksumError: The file has no `.sha256`, and needs one.
        TooLargeError: The file is larger than `max_bytes`.
        CheckpointError: The file is not a regular file, or cannot be read.
        StateError: The disk is full or `claimed_root` cannot be written.
    """
    try:
        return _claim(
            source, claimed_root, max_bytes, quiet, require_checksum, origin, journal, exclusive, check_signature
        )
    except OSError as error:  # of the drop folder: what writing raises is a StateError already
        raise _unreadable(source, error) from None


def _claim(
    source: Path,
    claimed_root: Path,
    max_bytes: int | None,
    quiet: bool,
    require_checksum: bool,
    origin: Origin | None,
    journal: Callable[[str, int], object],
    exclusive: Callable[[], AbstractContextManager[object]],
    check_signature: Callable[[Path], Signed | None],
) -> Claim:
    descriptor = _open(source)
    temporary = temporary_sibling(claimed_root / "claim")
    try:
        before = os.fstat(descriptor)
        _check_kind(source, before, max_bytes)
        if require_checksum and not sidecar_of(source).exists():
            raise MissingChecksumError(_no_checksum(source))
        signature = fingerprint_of(signature_of(source))
        signed = _signed(source, before.st_size, quiet, check_signature)
        with as_state_error(claimed_root):
            claimed_root.mkdir(exist_ok=True)  # without its parents: a state folder that is gone is not made anew
            digest, size = _copy(descriptor, temporary, before.st_size)
        _check_unchanged(source, descriptor, before, size)
        _check_sidecar(source, digest, quiet, require_checksum)
        if signed is not None and signed.statement.sha256 != digest:
            raise _misfit(source, signed.name, f"sha256 {digest}", signed.statement.sha256, quiet)
        if origin is not None and signed is not None:
            origin = dataclasses.replace(origin, signature=signed.signature.envelope)
        with exclusive():
            path = _keep(temporary, claimed_root / digest, origin)
            journal(digest, size)
        return Claim(digest, path, size, remove(source, Fingerprint.of(before), signature))
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # report the first error; the next start removes the file
            temporary.unlink(missing_ok=True)


def _open(source: Path) -> int:
    try:
        # No link is followed; a pipe must not make us wait for its other end.
        return os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise GoneError(f"{printable(source.name)} is gone from the drop folder; drop it again") from None
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_FILE:
            raise
        name = printable(source.name)
        raise CheckpointError(
            f"{name} cannot be read: {error.strerror}; drop a file that the daemon may read"
        ) from None


def _unreadable(source: Path, error: OSError) -> UnreadableError:
    reason = error.strerror or str(error)
    return UnreadableError(f"{printable(source.name)} cannot be read now: {reason}; it is tried again")


def _check_kind(source: Path, status: os.stat_result, max_bytes: int | None) -> None:
    name = printable(source.name)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name} is no regular file; drop the file itself")
    if max_bytes is not None and status.st_size > max_bytes:
        size, limit = format_bytes(status.st_size), format_bytes(max_bytes)
        raise TooLargeError(f"{name} has {size}, watch.max_bytes is {limit}; drop a smaller file or raise the limit")


def _copy(descriptor: int, target: Path, expected: int) -> tuple[str, int]:
    """Copy to a new file and sync it; stop one chunk after the expected size, so that a growing file ends the copy."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as copy:
        while size <= expected and (chunk := _read(descriptor)):
            digest.update(chunk)
            copy.write(chunk)
            size += len(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest(), size


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK_BYTES)
    except OSError as error:  # a network share that went away, a bad disk: not the fault of what we write to
        raise UnreadableError(f"reading the dropped file failed: {error.strerror}; it is tried again") from None


def _check_unchanged(source: Path, descriptor: int, before: os.stat_result, size: int) -> None:
    """Check that the open file and the file of this name are still the file that was opened."""
    expected = Fingerprint.of(before)
    try:
        same = Fingerprint.of(os.fstat(descriptor)) == expected == Fingerprint.of(source.lstat())
    except FileNotFoundError:
        raise GoneError(f"{printable(source.name)} was taken out of the drop folder; drop it again") from None
    if not same or size != before.st_size:
        raise NotSettledError(
            f"{printable(source.name)} changed while it was copied; it is tried again once it is quiet"
        )


def _no_checksum(source: Path) -> str:
    name, sidecar = printable(source.name), printable(sidecar_of(source).name)
    return (
        f"{name} has no {sidecar} next to it, and drop.require_checksum is set; write it with"
        f" `sha256sum {name} > {sidecar}` and drop both, the checksum first"
    )


def _check_sidecar(source: Path, digest: str, quiet: bool, required: bool) -> None:
    sidecar = sidecar_of(source)
    name = printable(sidecar.name)
    try:
        with sidecar.open("rb") as file:
            text = file.read(_MAX_SIDECAR_BYTES).decode(errors="replace")
    except FileNotFoundError:
        if required:
            raise MissingChecksumError(_no_checksum(source)) from None
        return
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_FILE:
            raise
        raise ChecksumError(f"{name} cannot be read: {error.strerror}; drop it again or leave it out") from None
    match = _DIGEST.search(text)
    if match is not None and match[0].lower() == digest:
        return
    if not quiet:
        raise NotSettledError(f"{printable(source.name)} does not match {name} yet; it is tried again once it is quiet")
    if match is None:
        raise ChecksumError(f"{name} holds no sha256; write it with sha256sum or leave it out")
    raise ChecksumError(f"the file has sha256 {digest}, {name} says {match[0].lower()}; transfer both again")


def _signed(source: Path, size: int, quiet: bool, check_signature: Callable[[Path], Signed | None]) -> Signed | None:
    """Return what the signature of a file says; a file of another size is not copied to find out."""
    try:
        signed = check_signature(source)
    except SignatureError as error:
        if quiet:
            raise
        raise NotSettledError(f"{error} (it may still arrive; it is checked again once the file is quiet)") from None
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_FILE:
            raise
        name = printable(signature_of(source).name)
        raise SignatureError(f"{name} cannot be read: {error.strerror}; drop one that the daemon may read") from None
    if signed is not None and signed.statement.file_bytes != size:
        raise _misfit(source, signed.name, f"{size} bytes", str(signed.statement.file_bytes), quiet)
    return signed


def _misfit(source: Path, name: str, found: str, signed: str, quiet: bool) -> EdgedError:
    if not quiet:
        return NotSettledError(
            f"{printable(source.name)} does not match {name} yet; it is tried again once it is quiet"
        )
    return ChecksumError(f"the file has {found}, {name} is of {signed}; transfer both again")


def _keep(temporary: Path, folder: Path, origin: Origin | None) -> Path:
    """Link the copy to its final path, where another update may have stored the same contents already."""
    path = folder / CLAIMED_NAME
    with as_state_error(path):
        folder.mkdir(exist_ok=True)
        linked = temporary_sibling(folder.parent / "claim")
        os.link(temporary, linked)
        linked.replace(path)
        linked.unlink(missing_ok=True)  # a rename between two links of one file does nothing
        fsync_directory(folder)
        fsync_directory(folder.parent)
    if origin is not None:
        write_origin(folder, origin)
    return path


def remove(source: Path, claimed: Fingerprint, signature: Fingerprint | None = None) -> str | None:
    """Remove a claimed file, its checksum and its signature from the drop folder, unless others have their names now.

    Returns:
        Why it cannot be removed, in one line; None if it is gone.
    """
    try:
        if Fingerprint.of(source.lstat()) == claimed:
            sidecar_of(source).unlink(missing_ok=True)  # first: alone it is ignored, while a file without it is not
            source.unlink()
            # Last: without it, a file that a crash leaves behind would be rejected. Not that of the next file.
            if signature is not None and fingerprint_of(signature_of(source)) == signature:
                signature_of(source).unlink()
            with contextlib.suppress(OSError):  # of a share, for example
                fsync_directory(source.parent)  # or a power cut could bring it back once its update has ended
    except FileNotFoundError:
        pass
    except OSError as error:
        return error.strerror or str(error)
    return None
