"""Asynchronous access to the published generations; blocking operations run in the disk thread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edged.artifacts.store import ModelStore
from edged.json_document import parse_document
from service.system.disk_thread import Disk


class GenerationRepository:
    """The published generations of all models, read and changed from the event loop.

    Args:
        store: Published generations on the disk.
        disk: Thread for disk work.
    """

    def __init__(self, store: ModelStore, disk: Disk) -> None:
        self._store = store
        self._disk = disk

    def path(self, model: str, number: int) -> Path:
        """Return the folder of a generation."""
        return self._store.path(model, number)

    def exists(self, model: str, number: int) -> bool:
        """Return whether a generation is on the disk."""
        return self.path(model, number).is_dir()

    def current(self, model: str) -> int | None:
        """Return the generation that is committed to service; None if there is none."""
        return self._store.current(model)

    def previous(self, model: str) -> int | None:
        """Return the generation that was current before; None if there is none."""
        return self._store.previous(model)

    def rollback_target(self, model: str) -> int | None:
        """Return the generation that a rollback would put in service; None if there is none on the disk."""
        target = self.previous(model)
        return target if target is not None and self.exists(model, target) else None

    def numbers(self, model: str) -> list[int]:
        """Return the generations of a model that are on the disk, ascending."""
        return self._store.generations(model)

    async def read(self, model: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return manifest.json and report.json of a generation, as parsed JSON; {} for a report that cannot be read.

        Raises:
            ArtifactError: The manifest cannot be read.
        """
        return await self._disk(self._read, model, number)

    async def require_whole(self, model: str, number: int) -> None:
        """Check that a generation has all of its files, see `ModelStore.require_whole`.

        Raises:
            ArtifactError: A file is missing or has another size.
        """
        await self._disk(self._store.require_whole, model, number)

    def _read(self, model: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        path = self._store.path(model, number) / "report.json"
        manifest = self._store.manifest(model, number)
        try:
            return manifest, parse_document(path.read_bytes())
        except (OSError, ValueError):  # serving does not need it
            return manifest, {}

    async def link_problem(self, model: str) -> str | None:
        """Return why `current` leads to no generation, see `ModelStore.link_problem`."""
        return await self._disk(self._store.link_problem, model)

    async def damage(self, model: str, number: int, *, derived: bool = False) -> str | None:
        """Return what is damaged in a generation, see `ModelStore.damage`; None if it is whole."""
        return await self._disk(self._store.damage, model, number, derived=derived)

    async def quarantine(self, model: str, number: int, record: Mapping[str, Any]) -> None:
        """Move a damaged generation aside, see `ModelStore.quarantine`.

        Raises:
            StateError: The folder cannot be moved or written.
        """
        await self._disk(self._store.quarantine, model, number, record)

    async def quarantined(self, model: str) -> dict[int, dict[str, Any]]:
        """Return the records of the quarantined generations by their numbers."""
        return await self._disk(self._store.quarantined, model)

    async def restore(self, model: str, number: int) -> None:
        """Make a generation current, whatever `current` is now, see `ModelStore.restore`.

        Raises:
            StateError: The link cannot be written.
        """
        await self._disk(self._store.restore, model, number)

    async def reserve(self, model: str) -> int:
        """Return the number of the next generation of a model.

        Raises:
            StateError: The disk is full.
        """
        return await self._disk(self._store.reserve, model)

    async def publish(self, model: str, staged: Path, number: int) -> None:
        """Turn a staged artifact into a generation of a model, with a number that was reserved.

        Raises:
            EdgedError: The artifact is damaged, or the disk is full.
        """
        await self._disk(self._store.publish, model, staged, number)

    async def switch(self, model: str, number: int) -> None:
        """Make a generation current, durably.

        Raises:
            StateError: The link cannot be replaced.
        """
        await self._disk(self._store.switch, model, number)

    async def prune(self, model: str, keep: int) -> None:
        """Remove all but the newest `keep` generations of a model, except the current and the previous one.

        Raises:
            StateError: One of them cannot be removed.
        """
        await self._disk(self._store.prune, model, keep)
