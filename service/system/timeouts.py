"""Waiting with a limit, without losing a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work` if it comes in time.

    Before Python 3.12, asyncio.wait_for forgets a cancellation that arrives in the same moment as the result: whoever
    cancelled the task and waits for its end then waits forever.

    Args:
        timeout_s: Seconds.
        work: Cancelled when the time is over or this is cancelled itself.

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
    """The result of a future if it comes in time. `within` would do, with more turns of the loop.

    Args:
        future: Cancelled when this is; done in any case afterwards.
        timeout_s: Seconds.

    Raises:
        asyncio.TimeoutError: The time is over.
    """
    timer = asyncio.get_running_loop().call_later(timeout_s, _expire, future)
    try:
        return await future
    finally:
        timer.cancel()
        # What fails in the very moment that this is cancelled has nobody to hear of it, which asyncio would log.
        if future.done() and not future.cancelled():
            future.exception()


def _expire(future: asyncio.Future[T]) -> None:
    if not future.done():
        future.set_exception(asyncio.TimeoutError())
