"""Holds of models: pins and pauses of an operator, and the highest signed version. The journal keeps them."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from service.journal.update import PAUSED, PINNED, Hold

if TYPE_CHECKING:
    from service.journal.store import Journal
    from service.system.disk_thread import Disk


class Holds:
    """The holds of all models.

    Args:
        journal: Journal that keeps the holds across restarts.
        disk: Thread for disk work.
    """

    def __init__(self, journal: Journal, disk: Disk) -> None:
        self._journal = journal
        self._disk = disk
        self._holds: dict[str, Hold] = {}
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read the holds from the journal, once at startup."""
        self._holds = await self._disk(self._journal.holds)

    def of(self, model: str) -> Hold:
        """Return the hold of a model."""
        return self._holds.get(model, Hold())

    def why(self, model: str) -> tuple[str, str] | None:
        """Return code and reason why the model's drop folder is not emptied; None if files are taken from it."""
        hold = self.of(model)
        if hold.paused:
            return PAUSED, f"model {model} is paused; `edged resume {model}` lets it go on"
        return (PINNED, self.pinned_reason(model)) if hold.pinned else None

    def pinned_reason(self, model: str) -> str:
        """Return the message that explains why no other generation goes live."""
        return f"model {model} is pinned to its generation; `edged unpin {model}` lets others go live"

    async def put(self, model: str, hold: Hold) -> None:
        """Pin or pause a model, or undo that; it is on the disk when this returns. The highest version stays.

        Raises:
            StateError: The journal cannot be written.
        """
        await self._disk(self._journal.put_hold, model, hold)
        self._holds[model] = dataclasses.replace(hold, highest_version=self.of(model).highest_version)
        self._changed.set()
        self._changed = asyncio.Event()  # waiters hold a reference to the old one

    async def write_again(self) -> None:
        """Write the holds to a journal that was repaired, which may have older ones.

        Raises:
            StateError: The journal cannot be written.
        """
        for model, hold in list(self._holds.items()):
            await self._disk(self._journal.put_hold, model, hold)

    async def raise_version(self, model: str, version: int) -> None:
        """Record that a signed version was committed; nothing changes if a higher one was.

        Raises:
            StateError: The journal cannot be written.
        """
        if version > (self.of(model).highest_version or 0):
            await self._disk(self._journal.raise_version, model, version)
            self._holds[model] = dataclasses.replace(self.of(model), highest_version=version)

    async def until_unpinned(self, model: str) -> None:
        """Wait until the model is not pinned."""
        while self.of(model).pinned:
            await self._changed.wait()
