"""A lock with priorities, which lets one worker run at a time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator
from types import TracebackType


class WorkerLock:
    """A lock that goes to the waiter with the highest priority, and among equals to the one that has waited longest."""

    def __init__(self) -> None:
        self._held = False
        self._arrivals = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def locked(self) -> bool:
        """Return whether the lock is held."""
        return self._held

    @contextlib.asynccontextmanager
    async def turn(self, priority: int) -> AsyncIterator[None]:
        """Acquire the lock with a priority and hold it for the block."""
        await self._acquire(priority)
        try:
            yield
        finally:
            self._release()

    async def __aenter__(self) -> None:
        """Acquire the lock with priority 0."""
        await self._acquire(0)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._release()

    async def _acquire(self, priority: int) -> None:
        if not self._held:
            self._held = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-priority, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # acquired and cancelled at once: pass it on
                self._release()
            raise

    def _release(self) -> None:
        """Pass the lock to the next waiter, or free it if there is none."""
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._held = False
