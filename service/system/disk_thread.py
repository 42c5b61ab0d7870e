"""One thread for all disk work, so that the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from service.system.liveness import Liveness
from service.system.process_title import set_name

NAME = "edged-disk"  # of the thread, in `top -H`

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """A thread that runs disk work in the order in which it was submitted.

    Args:
        liveness: Registry in which each piece of work has a deadline; work that exceeds it counts as hung.
    """

    def __init__(self, liveness: Liveness | None = None) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=NAME, initializer=partial(set_name, NAME))
        self._liveness = liveness or Liveness()

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(*args, **kwargs)` in the thread and return its result."""
        work = partial(self._run, partial(function, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _run(self, function: Callable[[], T]) -> T:
        with self._liveness.bounded("disk"):
            return function()

    def close(self) -> None:
        """Wait until all submitted work is done."""
        self._thread.shutdown()
