"""Writes that survive a crash: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edged.errors import StateError


@contextmanager
def as_state_error(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StateError that names `path` and the cause."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateError(f"cannot write {path}: {reason}; free space there or make it writable") from error


def temporary_sibling(path: Path) -> Path:
    """A fresh hidden name beside `path`, so that a rename into place stays on one filesystem."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def fsync_file(path: Path) -> None:
    """Wait until the contents of the file `path` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Wait until the entries (names) of the folder `path` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Wait until every regular file and folder under `path` is on the disk, the innermost first."""
    for parent, _, files in os.walk(path, topdown=False):
        for name in files:
            file = Path(parent, name)
            if file.is_file() and not file.is_symlink():
                fsync_file(file)
        fsync_directory(Path(parent))


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file `path` by one that holds `data`; a crash leaves the old contents or the new.

    Args:
        path: Where to.
        data: What it will hold.
        mode: Permissions, less those that the umask takes away.

    Raises:
        StateError: The disk is full or the folder cannot be written.
    """
    temporary = temporary_sibling(path)
    with as_state_error(path):
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)


def rename_into_place(source: Path, target: Path) -> None:
    """Give the finished file or folder `source` its final name, durably.

    Args:
        source: Already on the disk (see `fsync_tree`), on the same filesystem as `target`.
        target: Must not exist: a name in place is never changed, only added. One writer at a time.

    Raises:
        StateError: `target` exists, or the rename failed.
    """
    # rename(2) would replace a file or an empty folder without a word.
    if os.path.lexists(target):
        raise StateError(f"cannot write {target}: it exists already; remove it or choose another name")
    with as_state_error(target):
        source.rename(target)
        fsync_directory(target.parent)
        if source.parent != target.parent:
            fsync_directory(source.parent)


def replace_symlink(link: Path, target: str) -> None:
    """Point `link` at `target` in one step: whoever opens it gets the old target or the new one.

    Args:
        link: The symbolic link; need not exist yet. One writer at a time.
        target: What the link holds, relative to its folder.

    Raises:
        StateError: The link cannot be written.
    """
    # A fixed name, so that what a crash left behind is cleared by the next call.
    temporary = link.with_name(f".{link.name}.tmp")
    with as_state_error(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)
        fsync_directory(link.parent)
