"""What lies in the state folder and nobody needs any more. Finding it changes nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.artifacts.store import ModelStore
from edged.atomic import as_state_error
from edged.errors import ArtifactError
from service.config import Config
from service.journal import Journal
from service.paths import Paths

# A file is under claimed/ for a moment before the journal knows of it.
_ABANDONED_S = 3600.0
_CACHE_NAME = 16  # hex digits of a calibration digest, see edged.calibration.dataset


@dataclass(frozen=True)
class Garbage:
    """One folder or file that can go.

    Attributes:
        kind: "generation", "calibration", "staging" or "claimed".
        model: Model name; "" where it belongs to none.
        path: Where it lies.
        bytes: What it takes.
    """

    kind: str
    model: str
    path: Path
    bytes: int

    def to_dict(self, root: Path) -> dict[str, Any]:
        """Plain JSON types; the path below `root`."""
        return {**vars(self), "path": str(self.path.relative_to(root))}


def find(config: Config, paths: Paths, store: ModelStore, journal: Journal, *, caches: bool) -> list[Garbage]:
    """Everything that can go.

    Args:
        config: Generations beyond `keep` go, and the calibration images of models that it does not name.
        paths: Of the state folder.
        store: Published generations.
        journal: What belongs to an update that has not ended stays.
        caches: Whether to look at calibration images; only while no worker runs.
    """
    found = [*_generations(config, store), *_leftovers(paths, journal)]
    if caches:
        found += _caches(config, paths, store)
    return found


def remove(garbage: list[Garbage], config: Config, store: ModelStore) -> None:
    """Remove what `find` found.

    Raises:
        StateError: Something cannot be removed.
    """
    for entry in garbage:
        if entry.kind == "generation":
            continue  # the store knows how, so that half a generation is never seen
        remove_folder(entry.path)
    for model in config.models:
        store.prune(model.name, model.keep)


def remove_folder(path: Path) -> None:
    """Remove a folder or a file.

    Raises:
        StateError: It cannot be removed.
    """
    with as_state_error(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _generations(config: Config, store: ModelStore) -> Iterator[Garbage]:
    for model in config.models:
        for generation in store.outdated(model.name, model.keep):
            yield _garbage("generation", model.name, store.path(model.name, generation))


def _leftovers(paths: Paths, journal: Journal) -> Iterator[Garbage]:
    """What updates left behind that have ended, or were never journaled."""
    open_updates = journal.open_updates()
    staged, claimed = {str(update.id) for update in open_updates}, {update.sha256 for update in open_updates}
    for path in _entries(paths.staging):
        if path.name not in staged:
            yield _garbage("staging", "", path)
    for path in _entries(paths.claimed):
        if path.name not in claimed and time.time() - path.lstat().st_mtime > _ABANDONED_S:
            yield _garbage("claimed", "", path)


def _caches(config: Config, paths: Paths, store: ModelStore) -> Iterator[Garbage]:
    """Decoded images that no generation was made with; of each model the newest stay, for the next update."""
    for folder in _entries(paths.calibrations):
        caches = sorted(_entries(folder), key=lambda path: path.lstat().st_mtime)
        finished = [path.name for path in caches if not path.name.startswith(".")]
        kept = set(finished[-1:]) | _used_caches(store, folder.name)
        if config.model(folder.name) is None:
            kept = set()
        for path in caches:
            if path.name not in kept:
                yield _garbage("calibration", folder.name, path)


def _used_caches(store: ModelStore, model: str) -> set[str]:
    used = set()
    for generation in store.generations(model):
        with contextlib.suppress(ArtifactError, KeyError, TypeError):
            used.add(store.manifest(model, generation)["calibration"]["digest"][:_CACHE_NAME])
    return used


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _garbage(kind: str, model: str, path: Path) -> Garbage:
    return Garbage(kind, model, path, bytes_of(path))


def bytes_of(path: Path) -> int:
    """What a file or a folder takes; what is removed meanwhile counts no more."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    files = (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)
