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
