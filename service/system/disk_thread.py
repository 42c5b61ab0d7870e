"""One thread for what may wait for the disk, so that the event loop never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from service.system.liveness import Liveness

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """Runs what may wait for the disk in one thread, in order, so that the event loop never does.

    Args:
        liveness: Told of each piece of work; one that takes too long counts as hung.
    """

    def __init__(self, liveness: Liveness | None = None) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._liveness = liveness or Liveness()

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function(*args, **kwargs)`."""
        work = partial(self._run, partial(function, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _run(self, function: Callable[[], T]) -> T:
        with self._liveness.bounded("disk"):
            return function()

    def close(self) -> None:
        """Wait for what was begun."""
        self._thread.shutdown()
