"""Notices that the state folder under a running daemon is another one than it has opened."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from service.storage.paths import Paths

log = logging.getLogger(__name__)

_REMEDY = (
    "its models are served from memory, and drops stay where they are; bring it back, and edged goes on by itself, or"
    " restart edged, which begins with what is there then"
)


class StateIdentity:
    """The state folder that was opened: by device and inode of the folder and of what must not change in it.

    Args:
        paths: Locations in the state folder.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._known = {path: _identity(path) for path in (paths.root, paths.lock, paths.models)}
        self._read_only = _is_read_only(paths.root)

    def problem(self) -> str | None:
        """Return why nothing can be kept in the state folder, and what to do; None if it is the one that was opened."""
        root = self._paths.root
        found = _identity(root)
        if found is None:
            return f"state_dir {root} is gone: {_REMEDY}"
        if found != self._known[root]:
            return f"state_dir {root} was replaced by another folder: {_REMEDY}"
        for path in (self._paths.lock, self._paths.models):
            if self._known[path] is not None and (found := _identity(path)) != self._known[path]:
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


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False
