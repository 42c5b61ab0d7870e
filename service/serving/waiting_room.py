"""Requests that wait for a generation that is on its way."""

from __future__ import annotations

import asyncio
import time

from service.serving.channel import BusyError
from service.system.timeouts import within


class WaitingRoom:
    """Holds the requests of a model while its next generation starts.

    Otherwise every request of those seconds would fail, not only those that a crashed process took with it.

    Args:
        model: Model name.

    Attributes:
        held: Requests that wait now.
    """

    def __init__(self, model: str) -> None:
        self.held = 0
        self._model = model
        self._open = asyncio.Event()
        self._open.set()

    @property
    def is_open(self) -> bool:
        """Whether requests go straight through."""
        return self._open.is_set()

    def hold(self) -> None:
        """Make requests wait from now on."""
        self._open.clear()

    def release(self) -> None:
        """Let the waiting requests and all later ones through."""
        self._open.set()

    async def wait(self, timeout_s: float, capacity: int) -> float:
        """Wait until requests are let through.

        Args:
            timeout_s: Longest wait in seconds.
            capacity: Number of requests that may wait at once.

        Returns:
            Seconds left of `timeout_s`.

        Raises:
            BusyError: `capacity` requests wait already.
        """
        if self._open.is_set():
            return timeout_s
        if self.held >= capacity:
            raise BusyError(f"model {self._model!r} has {self.held} requests waiting; try again later")
        start = time.monotonic()
        self.held += 1
        try:
            await within(timeout_s, self._open.wait())
        except asyncio.TimeoutError:
            return 0.0
        finally:
            self.held -= 1
        return max(0.0, timeout_s - (time.monotonic() - start))
