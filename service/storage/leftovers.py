"""What a crash leaves behind: files and folders that were being written."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from edged.artifacts.store import DAMAGE
from service.storage.paths import Paths

log = logging.getLogger(__name__)

# As `edged.atomic` names what it renames into place; see `temporary_sibling` and `replace_symlink`.
_TEMPORARY = ".*.tmp"
# Below the state folder, where nobody else writes. Compiled models, which other processes write, expire.
_PLACES = (
    *("claimed", "claimed/*", "copies", "staging", "rejected/*", "superseded/*", "calib/*", "capture/*"),
    *("models/*", "models/*/gen", "models/*/gen/*"),
)


def sweep(paths: Paths) -> None:
    """Remove what an earlier daemon was writing when it died. For the start: nothing else writes there yet.

    What cannot be removed is logged, and stays.
    """
    for folder in _folders(paths.root):
        sweep_temporaries(folder)
    for folder in _entries(paths.models, "*/damaged/*"):  # a generation in quarantine may have such a name, too
        sweep_temporaries(folder, DAMAGE)
    for path in _entries(paths.staging, "*"):
        _remove(path)


def sweep_temporaries(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders that are not being written any more.

    Args:
        folder: Folder to look in.
        name: Name of what they were to become; None for all.
    """
    for path in _entries(folder, _TEMPORARY if name is None else f".{name}{_TEMPORARY}"):
        _remove(path)


def _folders(root: Path) -> Iterator[Path]:
    for place in _PLACES:
        yield from _entries(root, place)


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError as error:
        log.warning("cannot look for leftovers in %s: %s", folder, error.strerror)
        return []


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s, left behind by a crash: %s", path, error.strerror)
