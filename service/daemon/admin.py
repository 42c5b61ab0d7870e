"""What an operator can have the daemon do: each method is a route and a command."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from edged.errors import NotReadyError
from service.daemon.context import Context
from service.rollout.rollback import roll_back
from service.storage import garbage

log = logging.getLogger(__name__)


class Administration:
    """Changes what goes live.

    Args:
        context: What the supervisor owns.
        release: Has the files of a model looked at again that were held back.
    """

    def __init__(self, context: Context, release: Callable[[str], Awaitable[None]]) -> None:
        self._context = context
        self._release = release

    async def rollback(self, model: str) -> dict[str, Any]:
        """Put the generation before the current one back in service.

        Raises:
            UsageError: There is no such model.
            NotReadyError: There is no generation before, or the model is pinned.
        """
        self._context.require_model(model)
        return await roll_back(self._context, model)

    async def pin(self, model: str) -> dict[str, Any]:
        """Let no other generation go live.

        Raises:
            UsageError: There is no such model.
            NotReadyError: It has no generation yet.
            StateError: The journal cannot be written.
        """
        context = self._context
        context.require_model(model)
        async with context.servers[model].switching:  # not in the middle of a swap
            if context.store.current(model) is None:
                raise NotReadyError(f"model {model!r} has no generation to be pinned to; drop a checkpoint first")
            return await self._hold(model, pinned=True)

    async def unpin(self, model: str) -> dict[str, Any]:
        """The opposite of `pin`, with its errors."""
        return await self._hold(model, pinned=False)

    async def pause(self, model: str) -> dict[str, Any]:
        """Take nothing out of the drop folder; what was taken before goes on.

        Raises:
            UsageError: There is no such model.
            StateError: The journal cannot be written.
        """
        return await self._hold(model, paused=True)

    async def resume(self, model: str) -> dict[str, Any]:
        """The opposite of `pause`, with its errors."""
        return await self._hold(model, paused=False)

    async def collect_garbage(self, dry_run: bool) -> dict[str, Any]:
        """Remove what nobody needs any more.

        Args:
            dry_run: Only say what would go.

        Returns:
            {"dry_run", "removed": what went, "bytes": their sum, "skipped": why something was not looked at, or None}.

        Raises:
            StateError: Something cannot be removed.
        """
        context = self._context
        if context.worker_lock.locked():
            removed = await context.disk(self._collect, dry_run, caches=False)
            skipped = "calibration images: a worker is running, which may use them; try again when it has ended"
        else:
            async with context.worker_lock:
                removed, skipped = await context.disk(self._collect, dry_run, caches=True), None
        told = garbage.summary(removed, context.paths, dry_run=dry_run, skipped=skipped)
        if not dry_run:
            context.metrics.garbage_removed.inc(told["bytes"])
            log.info("removed %d folders or files of %d bytes that nobody needs", len(removed), told["bytes"])
        return told

    def _collect(self, dry_run: bool, *, caches: bool) -> list[garbage.Garbage]:
        context = self._context
        found = garbage.find(context.config, context.paths, context.store, context.journal, caches=caches)
        if not dry_run:
            garbage.remove(found, context.config, context.store)
        return found

    async def _hold(self, model: str, **changes: bool) -> dict[str, Any]:
        context = self._context
        context.require_model(model)
        hold = dataclasses.replace(context.holds.of(model), **changes)
        await context.holds.put(model, hold)
        log.warning("model %s: pinned %s, paused %s", model, hold.pinned, hold.paused)
        if context.holds.why(model) is None:
            await self._release(model)
        return {"model": model, "generation": context.store.current(model), **vars(hold)}
