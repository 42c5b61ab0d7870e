"""Which files are open for writing, as far as /proc shows it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

_PROC = Path("/proc")
_WRITES = os.O_WRONLY | os.O_RDWR


def being_written(paths: Collection[Path], proc: Path = _PROC) -> set[Path]:
    """Return those of `paths` that a process of this machine has open for writing.

    Processes of other users are seen only by root. Another machine's writes to a network share are not seen.

    Args:
        paths: Files to look for.
        proc: The folder /proc.
    """
    wanted: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            status = path.stat(follow_symlinks=False)
        except OSError:  # gone again
            continue
        wanted[status.st_dev, status.st_ino] = path
    if not wanted:
        return set()
    return {wanted[file] for file in _written_files(proc, wanted.keys())}


def _written_files(proc: Path, wanted: Collection[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield device and inode of each of the wanted files that is open for writing."""
    for process in _names(proc):
        if not process.isdecimal():
            continue
        folder = proc / process
        for descriptor in _names(folder / "fd"):
            try:
                status = (folder / "fd" / descriptor).stat()
                file = (status.st_dev, status.st_ino)
                if file in wanted and _flags(folder / "fdinfo" / descriptor) & _WRITES:
                    yield file
            except (OSError, ValueError):  # closed again, or not ours to read
                continue


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names, of thousands of entries
    except OSError:
        return []


def _flags(fdinfo: Path) -> int:
    for line in fdinfo.read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0
