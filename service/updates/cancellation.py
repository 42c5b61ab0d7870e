"""Cancellation of updates that are being worked on. Only parts of the work that leave nothing behind are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class UpdateCancelledError(Exception):
    """An operator cancelled the update."""


class Cancellations:
    """The updates that an operator wants to end while they are being worked on."""

    def __init__(self) -> None:
        self._requests: dict[int, asyncio.Future[bool]] = {}
        self._too_late: set[int] = set()
        self._work: dict[int, asyncio.Task[Any]] = {}

    async def request(self, update_id: int) -> bool:
        """Have an update that is being worked on cancelled, and wait for it.

        Returns:
            Whether it was cancelled; if not, it has ended or is going live.
        """
        if update_id in self._too_late:
            return False
        request = self._requests.setdefault(update_id, asyncio.get_running_loop().create_future())
        if (work := self._work.get(update_id)) is not None:
            work.cancel()
        return await asyncio.shield(request)  # another client may wait for it, too

    def is_requested(self, update_id: int) -> bool:
        """Return whether an update is to be cancelled, and is not yet."""
        return update_id in self._requests

    async def run(self, update_id: int, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of work that can be stopped.

        Raises:
            UpdateCancelledError: It was stopped.
        """
        if update_id in self._requests:
            work.close()
            raise UpdateCancelledError
        task: asyncio.Task[T] = asyncio.ensure_future(work)
        self._work[update_id] = task
        try:
            await asyncio.wait({task})
        finally:
            del self._work[update_id]
            if not task.done():  # the daemon stops
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise UpdateCancelledError
        return task.result()

    def begin_switch(self, update_id: int) -> None:
        """Accept no cancellation of an update from now on.

        Raises:
            UpdateCancelledError: It was to be cancelled before.
        """
        if update_id in self._requests:
            raise UpdateCancelledError
        self._too_late.add(update_id)

    def settle(self, update_id: int, *, cancelled: bool) -> None:
        """Answer the requests to cancel an update, on which the work has ended for now."""
        self._too_late.discard(update_id)
        request = self._requests.pop(update_id, None)
        if request is not None and not request.done():
            request.set_result(cancelled)
