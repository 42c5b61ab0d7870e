"""Calls in progress, so that the server's end waits for them and for nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from service.system.timeouts import within


class Calls:
    """The calls in progress.

    Attributes:
        stopping: Set once the server stops; calls without an end of their own end then.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count a call as in progress."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self._none.set()

    async def wait_for_end(self, timeout_s: float) -> None:
        """Wait until no call is in progress, at most for `timeout_s` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, self._none.wait())
