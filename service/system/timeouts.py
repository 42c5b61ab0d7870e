"""Timeouts for asyncio that never lose a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine if it finishes in time.

    Before Python 3.12, asyncio.wait_for loses a cancellation that arrives at the same moment as the result: code that
    cancels the task and awaits its end would then wait forever.

    Args:
        timeout_s: Seconds to wait.
        work: Coroutine; it is cancelled at the timeout, and if the caller is cancelled.

    Raises:
        asyncio.TimeoutError: The time is over.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def in_time(future: asyncio.Future[T], timeout_s: float) -> T:
    """Return the result of a future if it is set in time.

    `within` would do the same with more iterations of the event loop.

    Args:
        future: Future to wait for; it is done afterwards in any case, and is cancelled if the caller is cancelled.
        timeout_s: Seconds to wait.

    Raises:
        asyncio.TimeoutError: The time is over.
    """
    if timeout_s <= 0:  # in any case, and not only if the event loop comes to its timers before the result
        _expire(future)
    timer = asyncio.get_running_loop().call_later(timeout_s, _expire, future)
    try:
        return await future
    finally:
        timer.cancel()
        # If the future fails at the moment of a cancellation, asyncio would log that its error was never retrieved.
        if future.done() and not future.cancelled():
            future.exception()


def _expire(future: asyncio.Future[T]) -> None:
    if not future.done():
        future.set_exception(asyncio.TimeoutError())
