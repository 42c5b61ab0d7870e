"""What generations and caches take, and how room is made for the next update: what can be made anew or is oldest goes.

The live generation and the one before it always stay, and so does whatever an open update still needs.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from edged.artifacts.store import ModelStore
from edged.calibration.folder import scan
from edged.errors import CalibrationError
from edged.models.names import default_input
from edged.spec import InputSpec
from service.config.load import Config, ModelConfig
from service.journal.store import Journal, Update
from service.outcomes import Postponement
from service.storage.garbage import Garbage, bytes_of, generations_of_others, needed_generations, remove_folder
from service.storage.paths import Paths
from service.units import format_bytes

log = logging.getLogger(__name__)

_CHANNELS = 3


@dataclass(frozen=True)
class Quota:
    """The part of the state folder that grows with every update.

    Attributes:
        config: The configuration in force.
        paths: Of the state folder.
        store: Published generations.
        journal: Which generations open updates need.
    """

    config: Config
    paths: Paths
    store: ModelStore
    journal: Journal

    def used(self) -> int:
        """Bytes of all generations and caches."""
        return sum(bytes_of(path) for path in (self.paths.models, self.paths.calibrations))

    def make_room(self, needed: int, *, caches_of: ModelConfig | None = None, caches: bool = True) -> int:
        """Remove until `needed` more bytes are within storage.max_bytes, or nothing is left to remove.

        Generations of models that are not configured any more go first, then the oldest.

        Args:
            needed: Bytes that will be written.
            caches_of: Its newest cache stays: it is about to be used.
            caches: Whether caches may go; only while no worker runs.

        Returns:
            Bytes that are missing still, 0 if there is room.

        Raises:
            StateError: Something cannot be removed.
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
            log.warning("removed %s of %s for want of room: storage.max_bytes", entry.kind, entry.model)
            if entry.kind == "generation":
                self.store.remove(entry.model, [int(entry.path.name)])
            else:
                remove_folder(entry.path)
            missing -= entry.bytes
        return max(missing, 0)

    def why_no_room(self, update: Update, model: ModelConfig, recheck_s: float) -> Postponement | None:
        """Make room for an update; a postponement if that cannot be done.

        Raises:
            StateError: Something cannot be removed.
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
            where = f"{format_bytes(free)} are free where {self.paths.root} lies"
            return Postponement("disk", f"{takes}, and {where}; free some, or try `edged gc`", recheck_s)
        return None

    def needed(self, update: Update, model: ModelConfig) -> int:
        """Bytes that an update will write, at most: an artifact is no larger than its checkpoint."""
        return update.file_bytes + (0 if self._finished_caches(model.name) else _cache_bytes(model))

    def _of_others(self) -> list[Garbage]:
        return list(generations_of_others(self.config, self.store, self.journal))

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
        """Names of caches, the newest last."""
        folder = self.paths.calibration(model)
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        return [path.name for path in sorted(paths, key=lambda path: path.lstat().st_mtime)]


def _cache_bytes(model: ModelConfig) -> int:
    try:
        images = min(len(scan(model.calibration.dir).files), model.calibration.images)
    except CalibrationError:  # the worker will say so
        return 0
    default = InputSpec() if model.arch is None else default_input(model.arch)
    side = model.input.size or default.size
    return images * _CHANNELS * side**2
