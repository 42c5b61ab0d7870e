"""The folders of files that were not served, rejected/ and superseded/: each file with the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error, fsync_directory, make_folder, temporary_sibling, write_atomic
from service.storage.paths import CLAIMED_NAME


def keep(file: Path, folder: Path, reason: Mapping[str, Any]) -> None:
    """Link `file` as `folder`/file and write `folder`/reason.json; repeating it after a crash finishes it.

    Args:
        file: Claimed file, which stays where it is; may be gone already.
        folder: Folder rejected/<sha256> or superseded/<sha256>.
        reason: Contents of reason.json, JSON types.

    Raises:
        StateError: The disk is full or the folder cannot be written.
    """
    if file.exists():
        link(file, folder)
    with as_state_error(folder):
        make_folder(folder)
    write_atomic(folder / "reason.json", (json.dumps(reason, indent=2) + "\n").encode())


def link(file: Path, folder: Path) -> None:
    """Link `file` as `folder`/file, which is replaced if it exists.

    Raises:
        StateError: The disk is full or the folder cannot be written.
    """
    with as_state_error(folder):
        make_folder(folder)
        temporary = temporary_sibling(folder / CLAIMED_NAME)
        os.link(file, temporary)  # the same filesystem: both are in the state folder
        temporary.replace(folder / CLAIMED_NAME)
        temporary.unlink(missing_ok=True)  # a rename between two links of one file does nothing
        fsync_directory(folder)
        fsync_directory(folder.parent)


def discard(file: Path) -> None:
    """Remove <sha256>/file with its folder; nothing happens if it is gone."""
    shutil.rmtree(file.parent, ignore_errors=True)
