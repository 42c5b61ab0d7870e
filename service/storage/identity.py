"""Notices that the state folder under a running daemon is another one than it has opened."""

from __future__ import annotations

import logging
import os
import weakref
from pathlib import Path

from service.storage.paths import Paths

log = logging.getLogger(__name__)

_REMEDY = (
    "its models are served from memory, and drops stay where they are; bring it back, and edged goes on by itself, or"
    " restart edged, which begins with what is there then"
)


class StateIdentity:
    """The state folder that was opened: by device and inode of the folder and of what must not change in it.

    They are kept open as long as this object lives: overlayfs, as of containers, gives a folder another inode number
    once it had to forget it. So even a folder that stays would seem to have been replaced when memory is short.

    Args:
        paths: Locations in the state folder.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._open = {path: _open(path) for path in (paths.root, paths.lock, paths.models)}
        for descriptor in self._open.values():
            if descriptor is not None:
                weakref.finalize(self, os.close, descriptor)
        self._read_only = _is_read_only(paths.root)

    def problem(self) -> str | None:
        """Return why nothing can be kept in the state folder, and what to do; None if it is the one that was opened."""
        root = self._paths.root
        found = _identity(root)
        if found is None:
            return f"state_dir {root} is gone: {_REMEDY}"
        if found != _identity(self._open[root]):
            return f"state_dir {root} was replaced by another folder: {_REMEDY}"
        for path in (self._paths.lock, self._paths.models):
            if self._open[path] is not None and (found := _identity(path)) != _identity(self._open[path]):
                what = "is gone from" if found is None else "was replaced in"
                return f"{path.name} {what} state_dir {root}: {_REMEDY}"
        if not self._read_only and _is_read_only(root):
            return f"state_dir {root} is read-only now: {_REMEDY}"
        return None

    def mend(self) -> None:
        """Create the folders that were removed and hold nothing that cannot be replaced.

        Raises:
            OSError: One cannot be created.
        """
        paths = self._paths
        for folder in (paths.claimed, paths.staging, paths.rejected, paths.superseded, paths.calibrations):
            if not folder.is_dir():
                folder.mkdir()
                log.error("%s was removed; it is made anew, what was in it is gone", folder)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None


def _identity(place: Path | int | None) -> tuple[int, int] | None:
    """Return device and inode of a path or a descriptor; None if there is none."""
    try:
        status = None if place is None else os.stat(place)  # noqa: PTH116 - of a descriptor, too
    except OSError:
        return None
    return None if status is None else (status.st_dev, status.st_ino)


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False
