"""Collection of garbage: content of the state folder that is not needed any more. Finding it changes nothing.

The daemon collects it on request. While no daemon runs, the holder of the lock of the state folder may collect it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.artifacts.store import ModelStore
from edged.atomic import as_state_error
from edged.errors import ArtifactError, UsageError
from edged.execution.engine_cache import TIMINGS, model_digits
from edged.json_document import MALFORMED
from service.config.load import Config
from service.journal.copies import Copies
from service.journal.store import Journal
from service.storage.paths import Paths
from service.storage.state_lock import lock_state

# A file is in claimed/ for a moment before it is journaled.
_ABANDONED_S = 3600.0
DAY_S = 86400.0
_CACHE_NAME = 16  # hex digits of a calibration digest, see edged.calibration.dataset


@dataclass(frozen=True)
class Garbage:
    """A folder or file that can be removed.

    Attributes:
        kind: "generation", "calibration", "engine", "staging", "claimed", "rejected", "superseded" or
            "damaged".
        model: Name of the model; "" if the entry belongs to no model.
        path: Path of the folder or file.
        bytes: Disk space in bytes.
    """

    kind: str
    model: str
    path: Path
    bytes: int

    def to_dict(self, root: Path) -> dict[str, Any]:
        """Return the entry as plain JSON types, with its path relative to `root`."""
        return {**vars(self), "path": str(self.path.relative_to(root))}


def collect_without_daemon(config: Config, dry_run: bool) -> dict[str, Any]:
    """Find and remove all garbage while no daemon runs, and keep a daemon from starting meanwhile.

    Args:
        config: Configuration, which names the state folder.
        dry_run: Whether to report the garbage without removing it.

    Returns:
        The report that `summary` returns.

    Raises:
        UsageError: There is no such state folder.
        UnavailableError: A daemon is running.
        StateError: The state folder cannot be read, or an entry cannot be removed.
    """
    paths = Paths(config.state_dir)
    if not paths.journal.is_file():  # opening it would create it, perhaps as another user than the daemon's
        raise UsageError(f"state_dir {paths.root} holds no journal of edged, so there is nothing to collect")
    copies = Copies(paths.copies)
    with lock_state(paths.lock), contextlib.closing(Journal(paths.journal, copies=copies)) as journal:
        store = ModelStore(paths.models)
        found = find(config, paths, store, journal, caches=True)
        if not dry_run:
            remove(found, config, store)
    return summary(found, paths, dry_run=dry_run)


def summary(found: list[Garbage], paths: Paths, *, dry_run: bool, skipped: str | None = None) -> dict[str, Any]:
    """Build the report of a collection: {"dry_run", "removed", "bytes", "skipped"}.

    Args:
        found: Entries that were removed, or would be.
        paths: Locations in the state folder.
        dry_run: Whether nothing was removed.
        skipped: Why part of the state folder was not searched; None if all of it was.
    """
    listed = [entry.to_dict(paths.root) for entry in found]
    return {"dry_run": dry_run, "removed": listed, "bytes": sum(entry.bytes for entry in found), "skipped": skipped}


def find(config: Config, paths: Paths, store: ModelStore, journal: Journal, *, caches: bool) -> list[Garbage]:
    """Find all garbage.

    Args:
        config: Limits for generations (`keep`) and rejected files (`rejected`). The generations and calibration images
            of models that it does not name are garbage.
        paths: Locations in the state folder.
        store: Published generations.
        journal: History of the updates. Files of open updates are not garbage.
        caches: Whether to search calibration images; only while no worker runs.
    """
    found = [*_generations(config, store, journal), *_leftovers(paths, journal), *kept_files(config, paths, journal)]
    found += damaged_generations(store)
    removed = {(entry.model, int(entry.path.name)) for entry in found if entry.kind == "generation"}
    found += unused_engines(paths, store, removed)
    if caches:
        found += _caches(config, paths, store)
    return found


def remove(garbage: list[Garbage], config: Config, store: ModelStore) -> None:
    """Remove the entries that `find` returned.

    Raises:
        StateError: An entry cannot be removed.
    """
    generations: dict[str, list[int]] = {model.name: [] for model in config.models}
    for entry in garbage:
        if entry.kind == "generation":
            generations.setdefault(entry.model, []).append(int(entry.path.name))
        else:
            remove_folder(entry.path)
    for model, numbers in generations.items():
        store.remove(model, numbers)  # by the store, which never exposes half a generation


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


def needed_generations(journal: Journal) -> set[tuple[str, int | None]]:
    """Return the model and generation of each open update."""
    return {(update.model, update.generation) for update in journal.open_updates()}


def generations_of_others(config: Config, store: ModelStore, journal: Journal) -> Iterator[Garbage]:
    """Yield the generations of models that are not configured any more, except those that open updates need."""
    needed = needed_generations(journal)
    for model in store.models():
        if config.model(model) is None:
            for generation in store.generations(model):
                if (model, generation) not in needed:
                    yield _garbage("generation", model, store.path(model, generation))


def _generations(config: Config, store: ModelStore, journal: Journal) -> Iterator[Garbage]:
    for model in config.models:
        for generation in store.outdated(model.name, model.keep):
            yield _garbage("generation", model.name, store.path(model.name, generation))
    yield from generations_of_others(config, store, journal)


def _leftovers(paths: Paths, journal: Journal) -> Iterator[Garbage]:
    """Find files of updates that have ended, and of claims that were never journaled."""
    open_updates = journal.open_updates()
    staged, claimed = {str(update.id) for update in open_updates}, {update.sha256 for update in open_updates}
    for path in _entries(paths.staging):
        if path.name not in staged:
            yield _garbage("staging", "", path)
    for path in _entries(paths.claimed):
        if path.name not in claimed and time.time() - path.lstat().st_mtime > _ABANDONED_S:
            yield _garbage("claimed", "", path)


def kept_files(config: Config, paths: Paths, journal: Journal, now: float | None = None) -> Iterator[Garbage]:
    """Yield rejected and superseded files beyond the limits of number and age, which are those of each folder.

    The journal still records why they were not served. Rejected ones are not tried again if they are dropped again.

    Args:
        config: Configuration in force.
        paths: Locations in the state folder.
        journal: History of the updates.
        now: Time by which ages are judged, in seconds since 1970; None for that of the wall clock.
    """
    needed = {
        update.sha256 for update in journal.open_updates()
    }  # including a file that is being moved there right now
    oldest = (time.time() if now is None else now) - config.rejected.keep_days * DAY_S
    for kind, folder in (("rejected", paths.rejected), ("superseded", paths.superseded)):
        newest_first = sorted(_entries(folder), key=lambda path: path.lstat().st_mtime, reverse=True)
        for rank, path in enumerate(newest_first):
            if path.name not in needed and (rank >= config.rejected.keep or path.lstat().st_mtime < oldest):
                yield _garbage(kind, "", path)


def damaged_generations(store: ModelStore, oldest: float | None = None) -> Iterator[Garbage]:
    """Yield quarantined generations: those from before `oldest`, in seconds since 1970; None for all of them."""
    for model in store.models():
        for path in _entries(store.quarantine_folder(model)):
            if oldest is None or path.lstat().st_mtime < oldest:
                yield _garbage("damaged", model, path)


def unused_engines(paths: Paths, store: ModelStore, removed: Collection[tuple[str, int]] = ()) -> Iterator[Garbage]:
    """Yield compiled models that no generation needs: of models that are gone, and all but the newest of an engine.

    Args:
        paths: Locations in the state folder.
        store: Published generations.
        removed: Model and number of generations that count as removed already.
    """
    for folder in _entries(paths.engines):
        needed = _models_of(store, folder.name, {number for model, number in removed if model == folder.name})
        seen: set[str] = set()
        for path in sorted(_entries(folder), key=lambda path: path.lstat().st_mtime, reverse=True):
            if path.name == TIMINGS and needed:  # it saves time in later builds, whatever the model
                continue
            model_and_engine, _, _ = path.name.rpartition("-")
            # An engine of TensorRT is built before the generation that needs it is published.
            early = path.name.startswith(".") or model_and_engine.endswith("-tensorrt_plan")
            being_written = early and time.time() - path.lstat().st_mtime < _ABANDONED_S
            if model_and_engine.partition("-")[0] in needed and model_and_engine not in seen:
                seen.add(model_and_engine)
            elif not being_written:
                yield _garbage("engine", folder.name, path)


def _models_of(store: ModelStore, model: str, removed: Collection[int]) -> set[str]:
    """Return how the compiled models of a model's generations begin."""
    found = set()
    for generation in set(store.generations(model)) - set(removed):
        with contextlib.suppress(ArtifactError, *MALFORMED):
            found.add(model_digits(store.manifest(model, generation)["onnx"]["sha256"]))
    return found


def _caches(config: Config, paths: Paths, store: ModelStore) -> Iterator[Garbage]:
    """Find decoded images that no generation was calibrated with, except the newest of each configured model."""
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
        with contextlib.suppress(ArtifactError, *MALFORMED):
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
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    files = (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)
