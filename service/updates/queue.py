"""The queue of a model's updates: one at a time, the newest first.

An update that waits is superseded once a newer one is found fit, and not before: if the newer file turns out to be
unusable, the older one is next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Protocol

from edged.errors import EdgedError
from service.journal.states import GOING_LIVE
from service.journal.update import Update
from service.outcomes import is_fault_of_device
from service.system.liveness import Liveness
from service.system.timeouts import within

log = logging.getLogger(__name__)

_RETRY_JOURNAL_S = 10.0
_HAND_OVER_S = 10.0  # within which a claimed update is offered, even where the drop folder is slow to remove its file


class Driver(Protocol):
    """Takes the updates of a queue to their ends, see `service.updates.runner.UpdateRunner`."""

    async def drive(self, update: Update) -> float | None:
        """Take an update as far as it goes; returns the seconds until the next attempt, None at its end."""

    async def supersede(self, update: Update, newer: Update) -> None:
        """End a waiting update because a newer one was found fit."""

    async def cancel(self, update: Update) -> None:
        """End a waiting update because an operator cancels it."""

    async def fail(self, update: Update, reason: str) -> None:
        """End an update because of a fault of the daemon."""

    async def is_going_live(self, update: Update) -> bool:
        """Return whether an update is published or live and has not ended."""


@dataclass(eq=False)
class _Entry:
    """An update that waits.

    Attributes:
        update: Update as it was offered.
        first: Whether it goes on before newer ones, because it is going live.
        due: Monotonic time of its next attempt in seconds.
        newer: Update that was found fit meanwhile and supersedes this one; None before.
    """

    update: Update
    first: bool
    due: float = 0.0
    newer: Update | None = None


class UpdateQueue:
    """The updates of one model.

    Args:
        driver: Takes each update to its end.
        name: Model name.
        liveness: Registers the queue, to notice if it ends by a fault. What it waits for has deadlines of its own: the
            worker, the disk, the start of a generation.

    Attributes:
        active: Update that is being worked on or waits for its next attempt; None if the queue is empty.
        deferred: Whether the active update waits.
    """

    def __init__(self, driver: Driver, name: str = "", liveness: Liveness | None = None) -> None:
        self._driver = driver
        self._waiting: list[_Entry] = []
        self._changed = asyncio.Event()
        self._offered = asyncio.Event()
        self._ending = asyncio.Lock()  # held while waiting updates are ended
        self._rechecked = False
        self._working = False
        self._task: asyncio.Task[None] | None = None
        self._loop = (liveness or Liveness()).loop(f"updates of {name}")
        self.active: Update | None = None
        self.deferred = False

    @property
    def waiting(self) -> int:
        """Number of updates that wait or are being worked on."""
        return len(self._waiting) + self._working

    @property
    def updates(self) -> list[Update]:
        """The updates that wait or are being worked on, as they were offered, in the order of their turns."""
        entries = sorted(self._waiting, key=_precedence, reverse=True)
        waiting = [entry.update for entry in entries if entry.update is not self.active]
        return waiting if self.active is None else [self.active, *waiting]

    def holds(self, update_id: int) -> bool:
        """Return whether an update waits or is being worked on."""
        return update_id in [update.id for update in self.updates]

    def offer(self, update: Update) -> None:
        """Queue an update."""
        self._waiting.append(_Entry(update, first=update.state in GOING_LIVE))
        self._changed.set()
        self._offered.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def found_fit(self, update: Update) -> None:
        """Supersede the older updates that wait: this one was found to be a checkpoint of the model."""
        async with self._ending:
            for entry in [entry for entry in self._waiting if entry.update.id < update.id and not entry.first]:
                entry.newer = update
                await self._supersede(entry)

    async def await_offer(self, update_id: int) -> None:
        """Wait until an update that was journaled as claimed is in this queue; it is offered a moment later.

        Returns without it if it is not offered in time: it has ended, perhaps, and whoever waits must look again.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await within(_HAND_OVER_S, self._await_offer(update_id))

    async def _await_offer(self, update_id: int) -> None:
        while not self.holds(update_id):
            self._offered.clear()
            await self._offered.wait()

    async def cancel(self, update_id: int) -> bool:
        """Cancel an update that waits.

        Returns:
            Whether it waited; if not, it is being worked on, is going live, or is not in this queue.

        Raises:
            StateError: The journal cannot be written; the update waits on.
        """
        async with self._ending:
            entry = next((entry for entry in self._waiting if entry.update.id == update_id), None)
            if entry is None or entry.first:
                return False
            self._waiting.remove(entry)
            try:
                await self._driver.cancel(entry.update)
            except BaseException:
                self._waiting.append(entry)
                raise
            finally:
                self._changed.set()
            return True

    def recheck(self) -> None:
        """End the wait of deferred updates, so that they are tried again now."""
        self._rechecked = True
        for entry in self._waiting:
            entry.due = 0.0
        self._changed.set()

    async def close(self) -> None:
        """Stop; an interrupted update goes on after the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        with self._loop:
            while True:
                entry = await self._next()
                if entry.newer is not None:
                    async with self._ending:
                        if entry in self._waiting:  # unless it was cancelled just now
                            await self._supersede(entry)
                else:
                    await self._work(entry)

    async def _next(self) -> _Entry:
        """Wait for the turn of the first update, and return it. It stays in the list if it is superseded."""
        while True:
            self._changed.clear()
            entry = max(self._waiting, key=_precedence, default=None)
            rest = None if entry is None else entry.due - time.monotonic()
            self.active, self.deferred = None if entry is None else entry.update, rest is not None and rest > 0
            if entry is not None and not self.deferred:
                return entry
            if rest is None:
                await self._changed.wait()
            else:
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(rest, self._changed.wait())

    async def _work(self, entry: _Entry) -> None:
        self._waiting.remove(entry)
        self._rechecked, self._working = False, True  # before: a recheck during the work ends the wait that follows
        try:
            delay = await self._drive_safely(entry.update)
            if delay is not None:
                entry.due = 0.0 if self._rechecked else time.monotonic() + delay
                self._waiting.append(entry)
                entry.first = await self._goes_first(entry)
        finally:
            self._working = False

    async def _goes_first(self, entry: _Entry) -> bool:
        try:
            return await self._driver.is_going_live(entry.update)
        except EdgedError:  # the journal cannot be read; it has logged that already
            return entry.first

    async def _supersede(self, entry: _Entry) -> None:
        assert entry.newer is not None  # noqa: S101 - set by found_fit
        try:
            await self._driver.supersede(entry.update, entry.newer)
        except EdgedError as error:  # the journal cannot be written: it is superseded when its turn comes
            log.error(
                "update %d of %s (%s) cannot be superseded: %s",
                entry.update.id,
                entry.update.model,
                entry.update.file_name,
                error,
            )
            entry.due = time.monotonic() + _RETRY_JOURNAL_S
        else:
            self._waiting.remove(entry)

    async def _drive_safely(self, update: Update) -> float | None:
        try:
            return await self._driver.drive(update)
        except EdgedError as error:  # the journal cannot be written: all that is left is to try later
            log.error("update %d of %s (%s): %s", update.id, update.model, update.file_name, error)
            return _RETRY_JOURNAL_S
        except Exception as error:  # a bug in this program must not end the model's updates for good
            if is_fault_of_device(error):
                log.error("update %d of %s (%s) waits: %s", update.id, update.model, update.file_name, error)
                return _RETRY_JOURNAL_S
            log.exception("update %d of %s (%s) failed in the daemon", update.id, update.model, update.file_name)
            try:
                await self._driver.fail(update, f"unexpected {type(error).__name__}; see the log")
            except Exception:
                log.exception("update %d of %s (%s) cannot be ended either", update.id, update.model, update.file_name)
                return _RETRY_JOURNAL_S  # its file has left the drop folder: only this queue can take it to its end
            return None


def _precedence(entry: _Entry) -> tuple[bool, int]:
    return entry.first, entry.update.id
