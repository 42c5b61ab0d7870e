"""Pinned and paused models. An operator sets the holds; the journal keeps them across restarts."""

from __future__ import annotations

import asyncio
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
        """Change the hold of a model; it is on the disk when this returns.

        Raises:
            StateError: The journal cannot be written.
        """
        await self._disk(self._journal.put_hold, model, hold)
        self._holds[model] = hold
        self._changed.set()
        self._changed = asyncio.Event()  # waiters hold a reference to the old one

    async def until_unpinned(self, model: str) -> None:
        """Wait until the model is not pinned."""
        while self.of(model).pinned:
            await self._changed.wait()
