"""What a path leads to, for paths that come from files of other people: no name is an error."""

from __future__ import annotations

import stat
from pathlib import Path

FILE, FOLDER, OTHER = "file", "folder", "other"


def kind_of(path: Path) -> str | None:
    """Return what a path leads to, one of FILE, FOLDER and OTHER.

    Args:
        path: The path; links are followed.

    Returns:
        The kind. None if nothing is there or it cannot be looked up: the name is too long, holds a NUL, or is in a
        folder that this user may not enter.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return FOLDER if stat.S_ISDIR(mode) else FILE if stat.S_ISREG(mode) else OTHER
