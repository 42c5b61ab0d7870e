"""Atomic writes: even after a crash a reader sees the complete old file or the complete new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edged.errors import StateError


@contextmanager
def as_state_error(path: Path) -> Iterator[None]:
    """Convert an OSError of the block to a StateError with `path` and the cause."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateError(f"cannot write {path}: {reason}; free space there or make it writable") from error


def temporary_sibling(path: Path) -> Path:
    """Return a unique hidden path next to `path`, so that a rename into place stays on one filesystem."""
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
    """Wait until every regular file and folder under `path` is on the disk, innermost first."""
    for parent, _, files in os.walk(path, topdown=False):
        for name in files:
            file = Path(parent, name)
            if file.is_file() and not file.is_symlink():
                fsync_file(file)
        fsync_directory(Path(parent))


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the contents of the file `path` by `data`; a crash leaves the old or the new contents.

    Args:
        path: Path of the file, which need not exist yet.
        data: New contents of the file.
        mode: Permissions of the file, reduced by the umask.

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


def make_folder(folder: Path) -> None:
    """Create a folder, and the one around it; nothing happens if it exists.

    A tree that is gone, for example because it was unmounted, is not made anew in another place.

    Raises:
        OSError: The folder cannot be created, or the one around the two does not exist.
    """
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)


def rename_into_place(source: Path, target: Path) -> None:
    """Rename the finished file or folder `source` to its final name and sync the rename to the disk.

    Args:
        source: Path of a file or folder that is already synced (see `fsync_tree`), on the filesystem of `target`.
        target: Final path, which must not exist. Only one process may write to its folder at a time.

    Raises:
        StateError: `target` exists, or the rename failed.
    """
    # rename(2) would silently replace a file or an empty folder.
    if os.path.lexists(target):
        raise StateError(f"cannot write {target}: it already exists; remove it or choose another name")
    with as_state_error(target):
        source.rename(target)
        fsync_directory(target.parent)
        if source.parent != target.parent:
            fsync_directory(source.parent)


def replace_symlink(link: Path, target: str) -> None:
    """Point `link` at `target` atomically, so that a reader gets either the old or the new target.

    Args:
        link: Path of the symbolic link, which need not exist yet. Only one process may write it at a time.
        target: Target of the link, relative to the link's folder.

    Raises:
        StateError: The link cannot be written.
    """
    # The name is fixed, so that the next call removes what a crash left behind.
    temporary = link.with_name(f".{link.name}.tmp")
    with as_state_error(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)
        fsync_directory(link.parent)
