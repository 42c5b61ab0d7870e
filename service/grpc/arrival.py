"""How messages arrive: a bounded number at once, each in a bounded time, so that their memory is bounded."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Literal

from grpc import aio

from service.config.sections import ServeConfig
from service.grpc.errors import Context, Refusal, RefusedError
from service.system.timeouts import within

_SHARES = 4  # of serve.max_arriving_bytes: a message has at most one
# Shares that arriving messages take. gRPC receives them in pieces and joins those to a copy, so they take twice their
# size, and pieces leave holes in the heap: it grew by up to 12.3 shares with four messages, by 9.8 with three.
_ARRIVING_SHARES = 3


class TooSlowError(RefusedError):
    """A message did not arrive in time."""


def largest_message(serve: ServeConfig) -> int:
    """Return how many bytes a message may have.

    gRPC holds a message in the heap until it is whole and does not tell its size earlier. So the bound of all messages
    together is that of one times their number, and one has a share of `serve.max_arriving_bytes`.
    """
    return min(serve.max_body_bytes, max(1, serve.arriving_bytes // _SHARES))


def messages_at_once(serve: ServeConfig) -> int:
    """Return how many inference requests may be arriving at once, so that the heap stays below 3 times their bound."""
    return max(1, serve.arriving_bytes * _ARRIVING_SHARES // _SHARES // largest_message(serve))


class Turns:
    """Turns of messages to arrive, in order of their calls. Of those that wait, gRPC holds only the first 64 KiB.

    Args:
        count: Number of turns at once.
        timeout_s: Seconds to wait for a turn.
        full: What a client gets if it waited for too long.

    Usage: `async with turns:`, which raises RefusedError.
    """

    def __init__(self, count: int, timeout_s: float, full: Refusal) -> None:
        self._free = asyncio.Semaphore(count)
        self._timeout_s = timeout_s
        self._full = full

    async def __aenter__(self) -> None:
        """Wait for a turn."""
        if not self._free.locked():
            await self._free.acquire()
            return
        taken = asyncio.ensure_future(self._free.acquire())
        try:
            await asyncio.wait({taken}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            self._give_up(taken)
            raise
        if not taken.done():
            self._give_up(taken)
            raise RefusedError(self._full)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the next message arrive."""
        self._free.release()

    def _give_up(self, taken: asyncio.Future[Literal[True]]) -> None:
        """Stop waiting for a turn that may just have come."""
        taken.cancel()
        taken.add_done_callback(lambda done: None if done.cancelled() else self._free.release())


async def receive(context: Context, timeout_s: float, kind: str) -> bytes:
    """Return the message of a call, once it has arrived.

    Args:
        context: The call, whose handler is that of a stream.
        timeout_s: Seconds that it may take.
        kind: Name of the message, for errors.

    Raises:
        TooSlowError: It did not arrive in time.
        RefusedError: There is none.
    """
    try:
        raw: Any = await within(timeout_s, context.read())
    except asyncio.TimeoutError:
        text = f"the message did not arrive within serve.body_timeout_s = {timeout_s:g}; send less"
        raise TooSlowError(Refusal(408, text)) from None
    if raw is aio.EOF:  # or gRPC has answered already: the message is over its limit
        raise RefusedError(Refusal(400, f"there is no message; send one {kind}"))
    return bytes(raw)
