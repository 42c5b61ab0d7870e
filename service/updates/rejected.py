"""The folder of rejected files, each with its reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error, fsync_directory, write_atomic


def reject(file: Path, folder: Path, reason: Mapping[str, Any], *, keep_source: bool = False) -> None:
    """Move `file` to `folder`/file and write `folder`/reason.json; repeating it after a crash finishes it.

    Args:
        file: Claimed file; may be gone already.
        folder: Folder rejected/<sha256>.
        reason: Contents of reason.json, JSON types.
        keep_source: Whether `file` stays where it is, because another update needs it.

    Raises:
        StateError: The disk is full or the folder cannot be written.
    """
    with as_state_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / "file"
        if file.exists():
            target.unlink(missing_ok=True)
            os.link(file, target)  # the same filesystem: both are in the state folder
            fsync_directory(folder)
            if not keep_source:
                discard(file)
        fsync_directory(folder.parent)
    write_atomic(folder / "reason.json", (json.dumps(reason, indent=2) + "\n").encode())


def discard(claimed: Path) -> None:
    """Remove claimed/<sha256>/<name> with its folder; nothing happens if it is gone."""
    shutil.rmtree(claimed.parent, ignore_errors=True)
