"""The queue of a model's updates: one at a time, and only the newest of those that wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from edged.errors import EdgedError
from service.journal.update import Update
from service.system.liveness import Liveness
from service.system.timeouts import within

log = logging.getLogger(__name__)

_RETRY_JOURNAL_S = 10.0


class UpdateQueue:
    """The updates of one model.

    Args:
        drive: Takes an update as far as it goes; returns the seconds until the next attempt, None at its end.
        supersede: Ends an update because a newer one arrived.
        fail: Ends an update because of a fault of the daemon.
        name: Model name.
        liveness: Registers the queue, to notice if it ends by a fault. What it waits for has deadlines of its own: the
            worker, the disk, the start of a generation.

    Attributes:
        active: Update that is being worked on or waits for its next attempt; None if the queue is empty.
        deferred: Whether the active update waits.
    """

    def __init__(
        self,
        drive: Callable[[Update], Awaitable[float | None]],
        supersede: Callable[[Update, Update], Awaitable[None]],
        fail: Callable[[Update, str], Awaitable[None]],
        name: str = "",
        liveness: Liveness | None = None,
    ) -> None:
        self._drive = drive
        self._supersede = supersede
        self._fail = fail
        self._waiting: list[Update] = []
        self._offered = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop = (liveness or Liveness()).loop(f"updates of {name}")
        self.active: Update | None = None
        self.deferred = False

    @property
    def waiting(self) -> int:
        """Number of updates that wait or are being worked on."""
        return len(self._waiting) + (self.active is not None)

    def offer(self, update: Update) -> None:
        """Queue an update; those that wait already will be superseded."""
        self._waiting.append(update)
        self._offered.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def recheck(self) -> None:
        """End the wait of a deferred update, so that it is tried again now."""
        self._offered.set()

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
                await self._take(await self._newest())

    async def _take(self, update: Update) -> None:
        """Take an update, or a newer one that arrives while it waits, to its end."""
        self.active = update
        while (delay := await self._drive_safely(self.active)) is not None:
            self.deferred = True
            newer = await self._newer_within(delay)
            self.deferred = False
            if newer is not None:
                await self._supersede(self.active, newer)
                self.active = newer
        self.active = None

    async def _newest(self) -> Update:
        while not self._waiting:
            self._offered.clear()
            await self._offered.wait()
        *older, newest = self._waiting
        self._waiting.clear()
        for update in older:
            await self._supersede(update, newest)
        return newest

    async def _newer_within(self, delay_s: float) -> Update | None:
        if not self._waiting:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(delay_s, self._offered.wait())
        return await self._newest() if self._waiting else None

    async def _drive_safely(self, update: Update) -> float | None:
        self._offered.clear()  # before, not after: a recheck that is requested meanwhile ends the wait that follows
        try:
            return await self._drive(update)
        except EdgedError as error:  # the journal cannot be written: all that is left is to try later
            log.error("update %d of %s: %s", update.id, update.model, error)
            return _RETRY_JOURNAL_S
        except Exception as error:  # a bug in this program must not end the model's updates for good
            log.exception("update %d of %s failed in the daemon", update.id, update.model)
            try:
                await self._fail(update, f"unexpected {type(error).__name__}; see the log")
            except Exception:
                log.exception("update %d of %s cannot be ended either", update.id, update.model)
            return None
