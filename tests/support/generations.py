"""A fork server that the tests of a module share: each start of one imports torch, which takes a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from service.serving.fork_client import ForkServer

T = TypeVar("T")


class _Shared:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.fork_server = ForkServer()

    def close(self) -> None:
        self.loop.run_until_complete(self.fork_server.close())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


_shared: _Shared | None = None


def _get() -> _Shared:
    global _shared
    if _shared is None:
        _shared = _Shared()
    return _shared


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the event loop of the shared fork server."""
    return _get().loop.run_until_complete(main)


@contextlib.asynccontextmanager
async def shared_fork_server() -> AsyncIterator[ForkServer]:
    """Yield the fork server, inside `run`; it stays for the next test."""
    yield _get().fork_server


def close() -> None:
    """End the fork server, if there is one."""
    global _shared
    if _shared is not None:
        _shared.close()
    _shared = None
