"""Asynchronous access to the journal: every call runs in the disk thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from edged.artifacts.store import ModelStore
from edged.errors import StateError
from service.config.current import CurrentConfig
from service.journal.states import State, is_end
from service.journal.store import Journal
from service.journal.update import Event, Update
from service.system.disk_thread import Disk

log = logging.getLogger(__name__)


class UpdateRepository:
    """All updates, read and changed from the event loop.

    Every method raises StateError if the journal cannot be read or written.

    Args:
        journal: Journal that holds the updates.
        disk: Thread for disk work.
        store: Published generations; the journal keeps the update of a generation as long as the generation exists.
        config: Configuration in force; its `history` limits how many ended updates are kept.
        now: Function that returns the time by which ages are judged, in seconds since 1970.
        wall: Function that returns the seconds since 1970.
        steady: Function that returns monotonic seconds: the clock may be set while an update is worked on.

    Attributes:
        journal: The journal itself, for work that already runs outside the event loop.
    """

    def __init__(
        self,
        journal: Journal,
        disk: Disk,
        store: ModelStore,
        config: CurrentConfig,
        now: Callable[[], float] = time.time,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal = journal
        self._disk = disk
        self._store = store
        self._config = config
        self._now = now
        self._wall, self._steady = wall, steady
        self._seen: dict[int, float] = {}  # monotonic, of open updates that began in this process

    async def get(self, update_id: int) -> Update:
        """Return an update.

        Raises:
            UsageError: It does not exist.
        """
        return await self._disk(self.journal.require, update_id)

    async def events(self, update_id: int) -> list[Event]:
        """Return the events of an update, the oldest first."""
        return await self._disk(self.journal.events, update_id)

    async def open_updates(self) -> list[Update]:
        """Return the updates that have not ended, the oldest first."""
        return await self._disk(self.journal.open_updates)

    async def find(self, model: str | None = None, state: State | None = None, limit: int = 50) -> list[Update]:
        """Return the updates of a model and in a state, the newest first; None stands for any."""
        return await self._disk(self.journal.find, model=model, state=state, limit=limit)

    async def history(self, model: str) -> tuple[list[Update], list[Update]]:
        """Return the published updates of a model and those that were not published, the newest first in each."""
        return await self._disk(self._history, model)

    def _history(self, model: str) -> tuple[list[Update], list[Update]]:
        return self.journal.history(model), self.journal.history(model, published=False)

    async def last_for_key(self, key: str, before: int) -> Update | None:
        """Return the newest update of a file and config that is older than update `before`."""
        return await self._disk(self.journal.last_for_key, key, before=before)

    async def brought_live(self, model: str, generation: int) -> Update | None:
        """Return the newest update that put a generation in service and was not rolled back."""
        return await self._disk(self.journal.brought_live, model, generation)

    async def taken_out(self, model: str, generation: int) -> list[Update]:
        """Return the updates of a generation that were rolled back, the oldest first."""
        return await self._disk(self.journal.taken_out, model, generation)

    async def last_times(self) -> dict[str, tuple[float, float | None]]:
        """Return when a file was last dropped and when an update last went live, by model name."""
        return await self._disk(self.journal.last_times)

    async def create(self, model: str, file_name: str, file_bytes: int, dropped_at: float, seen: float) -> Update:
        """Begin an update, or continue the one of the same file that was not claimed yet, see `Journal.create`.

        Args:
            model: Model name.
            file_name: Name of the dropped file.
            file_bytes: Size of the file in bytes.
            dropped_at: When the file was first seen, seconds since 1970.
            seen: The same by the monotonic clock.
        """
        update = await self._disk(self.journal.create, model, file_name, file_bytes, dropped_at)
        if update.dropped_at == dropped_at:  # not one that is continued
            self._seen[update.id] = seen
        return update

    def note_retry(self, update: Update) -> None:
        """Note that an update has just begun with the file of an ended one."""
        self._seen[update.id] = self._steady()

    def seconds_since_drop(self, update: Update) -> float:
        """Return how long ago an update's file was first seen; by the wall clock where another process saw it."""
        seen = self._seen.get(update.id)
        return max(0.0, self._wall() - update.dropped_at) if seen is None else self._steady() - seen

    async def retry_of(self, update_id: int) -> int | None:
        """Return the number of the ended update whose file an update takes again; None for a dropped file."""
        return await self._disk(self.journal.retry_of, update_id)

    async def advance(
        self, update_id: int, state: State, detail: Mapping[str, Any] | None = None, **fields: Any
    ) -> Update:
        """Move an update to `state`, see `Journal.advance`. After a final state, expired updates are forgotten."""
        advanced = await self._disk(self.journal.advance, update_id, state, detail, **fields)
        if is_end(state):
            self._seen.pop(update_id, None)
            await self.forget_expired()
        return advanced

    async def resume(self, update_id: int) -> Update:
        """Move an update to the state from which it goes on after a restart."""
        return await self._disk(self.journal.resume, update_id)

    async def forgive(self, update_ids: Collection[int]) -> None:
        """Take back attempts that a stop interrupts, see `Journal.forgive`; a failure is only logged."""
        try:
            await self._disk(self.journal.forgive, update_ids)
        except StateError as error:
            log.warning("the stop counts as an interruption of the updates that it interrupts: %s", error)

    async def annotate(self, update_id: int, **fields: Any) -> Update:
        """Set fields of an update without a transition, see `Journal.annotate`."""
        return await self._disk(self.journal.annotate, update_id, **fields)

    async def note(self, update_id: int, detail: dict[str, Any]) -> None:
        """Add an event to the history of an update without a transition."""
        await self._disk(self.journal.note, update_id, detail)

    async def forget_expired(self) -> None:
        """Remove ended updates beyond the limits of `history`, except those of generations that are on the disk.

        A failure is only logged: the update that has just ended must not fail because of older ones.
        """
        history = self._config.current.history
        oldest = self._now() - history.max_age_days * 86400
        try:
            await self._disk(self._forget, history.max_updates, oldest)
        except (StateError, OSError) as error:
            log.warning("cannot remove old updates from the journal: %s; the next update tries again", error)

    def _forget(self, most: int, oldest: float) -> None:
        kept = {(model, number) for model in self._store.models() for number in self._store.generations(model)}
        self.journal.forget(most, oldest, kept)

    async def close(self) -> None:
        """Close the journal."""
        await self._disk(self.journal.close)
