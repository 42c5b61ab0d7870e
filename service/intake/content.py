"""A bounded look at a dropped file: whether it can be a checkpoint, and whether all of it is there.

Only the first bytes, the headers and the end are read, and nothing is built from them: the worker alone parses a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edged.errors import SignatureError
from edged.signing.verification import peek, read_signature, signature_of
from service.intake.pickled_sizes import CutOffError, UnknownSizeError, legacy_bytes, storage_bytes
from service.units import printable

# Names of checkpoints. A file of another name is one if its first bytes say so.
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin", ".pkl", ".tar", ".model")

_HEAD_BYTES = 16
_MAX_HEADER_BYTES = 4 << 20  # of a safetensors file; the worker rejects larger ones
_MAX_COMMENT_BYTES = 0xFFFF
_END = struct.Struct("<4s16xH")  # end of a zip's central directory: signature, length of the comment
_LOCAL = struct.Struct("<4s4xH16xHH")  # header of a zip's entry: signature, method, lengths of name and extra field
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,18}\s*,\s*(\d{1,18})\s*\]')


@dataclass(frozen=True)
class Inspection:
    """The result of a look at a file.

    Attributes:
        is_checkpoint: Whether its name or its first bytes are those of a checkpoint.
        missing: Why it cannot be whole, in words; None if nothing is missing, or that cannot be seen.
    """

    is_checkpoint: bool
    missing: str | None = None


def inspect(path: Path) -> Inspection:
    """Look at a file without following a link.

    Raises:
        OSError: The file cannot be read.
    """
    with _open(path) as file:
        head = file.read(_HEAD_BYTES)
        return Inspection(named(path.name) or begins(head), missing(file, os.fstat(file.fileno()).st_size))


def recognize(path: Path) -> bool:
    """Return whether a file is a checkpoint by its name or by its first bytes, of which nothing is parsed.

    Raises:
        OSError: The file cannot be read, or is a link.
    """
    with _open(path) as file:
        return named(path.name) or begins(file.read(_HEAD_BYTES))


def inspect_signed(path: Path) -> Inspection:
    """Look at a file that needs a signature: nothing of it is parsed, and its signature says how long it has to be.

    What the signature says is a hint as long as it is not verified: a wrong one makes its own file wait.

    Raises:
        OSError: The file cannot be read.
    """
    signature, claimed = signature_of(path), None
    with contextlib.suppress(OSError, SignatureError):  # the claim says what is wrong with it
        claimed = peek(read_signature(signature) or b"")
    size = path.lstat().st_size
    promised = size if claimed is None else claimed.file_bytes
    return Inspection(recognize(path), _compare(size, promised, f"{printable(signature.name)} promises"))


def _open(path: Path) -> BinaryIO:
    # A pipe must not make us wait for its other end.
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint by its name or by its first bytes; a link is followed.

    Raises:
        OSError: The file cannot be read.
    """
    if named(path.name):
        return True
    with path.open("rb") as file:
        return begins(file.read(_HEAD_BYTES))


def named(name: str) -> bool:
    """Return whether a file's name is that of a checkpoint."""
    return name.lower().endswith(CHECKPOINT_SUFFIXES)


def begins(head: bytes) -> bool:
    """Return whether first bytes are those of a zip, of a safetensors file or of a pickle."""
    return head.startswith((b"PK\x03\x04", b"\x80")) or head[8:9] == b"{"


def missing(file: BinaryIO, size: int) -> str | None:
    """Return what is missing of a file in words; None if nothing is, or if its format does not say so.

    Args:
        file: The file, at any position.
        size: Its size in bytes.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if not any(head):  # created, or its space was reserved, before its first bytes came
        return f"{size} bytes are there" + (", the first of them zeros" if size else "")
    try:
        if head[8:9] == b"{":
            return _compare(size, _safetensors_bytes(file), "its header promises")
        if head.startswith(b"PK\x03\x04"):
            return None if _has_end(file, size) else f"its zip has no end: {_zip_bytes(file, size)}"
        if head.startswith(b"\x80"):
            return _compare(size, legacy_bytes(file), "its header promises")
    except CutOffError:
        return f"its pickle has no end: {size} bytes are there"
    except UnknownSizeError:  # the worker says what is wrong with it
        return None
    return None


def _compare(size: int, promised: int, who: str) -> str | None:
    return None if promised <= size else f"{size} bytes are there, {who} {promised}"


def _safetensors_bytes(file: BinaryIO) -> int:
    """Return the size that the header promises; the number of bytes up to its end if not all of it is there."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise UnknownSizeError
    header = file.read(length)
    ends = (int(end) for end in _OFFSETS.findall(header)) if len(header) == length else ()
    return 8 + length + max(ends, default=0)


def _has_end(file: BinaryIO, size: int) -> bool:
    """Return whether a zip ends with its central directory, as every finished one does."""
    tail_bytes = min(size, _END.size + _MAX_COMMENT_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        end = at + _END.size
        if end <= len(tail) and end + _END.unpack_from(tail, at)[1] <= len(tail):
            return True
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return False


def _zip_bytes(file: BinaryIO, size: int) -> str:
    """Return how many bytes are there, and how many the tensors need that the first entry of torch.save describes."""
    file.seek(0)
    there = f"{size} bytes are there"
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size:
        return there
    _, method, name_bytes, extra_bytes = _LOCAL.unpack(header)
    if method != 0 or not file.read(name_bytes).endswith(b"/data.pkl"):
        return there
    file.seek(_LOCAL.size + name_bytes + extra_bytes)
    try:
        return f"{there}, its tensors alone need {sum(storage_bytes(file).values())}"
    except (CutOffError, UnknownSizeError):
        return there
