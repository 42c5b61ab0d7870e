"""Disk quota of generations and caches: makes room for an update by removing caches and the oldest generations.

The current and the previous generation are never removed, nor is anything that an open update needs.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from edged.artifacts.store import ModelStore
from edged.calibration.places import find_images
from edged.errors import CalibrationError
from edged.models.names import default_input
from edged.spec import InputSpec
from service.config.load import Config, ModelConfig
from service.journal.store import Journal, Update
from service.outcomes import Postponement
from service.storage.garbage import (
    Garbage,
    bytes_of,
    damaged_generations,
    generations_of_others,
    needed_generations,
    remove_folder,
)
from service.storage.paths import Paths
from service.units import format_bytes

log = logging.getLogger(__name__)

_CHANNELS = 3


@dataclass(frozen=True)
class Quota:
    """The part of the state folder that grows with every update.

    Attributes:
        config: Configuration in force.
        paths: Locations in the state folder.
        store: Published generations.
        journal: History of the updates, which names the generations that open updates need.
    """

    config: Config
    paths: Paths
    store: ModelStore
    journal: Journal

    def used(self) -> int:
        """Return the bytes of all generations and caches."""
        return sum(bytes_of(path) for path in (self.paths.models, self.paths.calibrations))

    def make_room(self, needed: int, *, caches_of: ModelConfig | None = None, caches: bool = True) -> int:
        """Remove generations and caches until `needed` more bytes fit into storage.max_bytes.

        Damaged generations and those of models that are not configured any more are removed first, then the oldest
        entries.

        Args:
            needed: Bytes that will be written.
            caches_of: Model whose newest cache is not removed, because it is about to be used.
            caches: Whether caches may be removed; only while no worker runs.

        Returns:
            Bytes that are still missing, 0 if there is room.

        Raises:
            StateError: An entry cannot be removed.
        """
        limit = self.config.storage.max_bytes
        if limit is None:
            return 0
        missing = self.used() + needed - limit
        if missing <= 0:
            return 0
        kept = "" if caches_of is None else caches_of.name
        found = [*self._old_generations(), *(self._caches(kept) if caches else ())]
        for entry in [*self._of_others(), *sorted(found, key=lambda entry: entry.path.lstat().st_mtime)]:
            if missing <= 0:
                break
            log.warning("removed %s of %s to stay within storage.max_bytes", entry.kind, entry.model)
            if entry.kind == "generation":
                self.store.remove(entry.model, [int(entry.path.name)])
            else:
                remove_folder(entry.path)
            missing -= entry.bytes
        return max(missing, 0)

    def why_no_room(self, update: Update, model: ModelConfig, recheck_s: float) -> Postponement | None:
        """Make room for an update; return a postponement if there is not enough.

        Raises:
            StateError: An entry cannot be removed.
        """
        needed = self.needed(update, model)
        takes = f"update {update.id} takes about {format_bytes(needed)}"
        if missing := self.make_room(needed, caches_of=model):
            limit = format_bytes(self.config.storage.max_bytes or 0)
            reason = (
                f"{takes}, {format_bytes(missing)} more than there is room for: storage.max_bytes is {limit} and"
                f" {format_bytes(self.used())} are live, to roll back to or in use; raise it"
            )
            return Postponement("disk", reason, recheck_s)
        free = shutil.disk_usage(self.paths.root).free
        if free < needed:
            where = f"{format_bytes(free)} are free on the disk of {self.paths.root}"
            return Postponement("disk", f"{takes}, and {where}; free some, or try `edged gc`", recheck_s)
        return None

    def needed(self, update: Update, model: ModelConfig) -> int:
        """Return the most bytes that an update can write; an artifact is never larger than its checkpoint."""
        return update.file_bytes + (0 if self._finished_caches(model.name) else _cache_bytes(model))

    def _of_others(self) -> list[Garbage]:
        return [*damaged_generations(self.store), *generations_of_others(self.config, self.store, self.journal)]

    def _old_generations(self) -> Iterator[Garbage]:
        needed = needed_generations(self.journal)
        for model in self.config.models:
            for generation in self.store.outdated(model.name, keep=0):
                if (model.name, generation) not in needed:
                    path = self.store.path(model.name, generation)
                    yield Garbage("generation", model.name, path, bytes_of(path))

    def _caches(self, kept_of: str) -> Iterator[Garbage]:
        folders = self.paths.calibrations.iterdir() if self.paths.calibrations.is_dir() else ()
        for folder in folders:
            kept = self._finished_caches(folder.name)[-1:] if folder.name == kept_of else []
            for path in folder.iterdir():
                if path.name not in kept:
                    yield Garbage("calibration", folder.name, path, bytes_of(path))

    def _finished_caches(self, model: str) -> list[str]:
        """Return the names of the finished caches of a model, the newest last."""
        folder = self.paths.calibration(model)
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        return [path.name for path in sorted(paths, key=lambda path: path.lstat().st_mtime)]


def _cache_bytes(model: ModelConfig) -> int:
    try:
        images = min(len(find_images(model.calibration.dir).files), model.calibration.images)
    except CalibrationError:  # the worker reports it
        return 0
    default = InputSpec() if model.arch is None else default_input(model.arch)
    side = model.input.size or default.size
    return images * _CHANNELS * side**2
