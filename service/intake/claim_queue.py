"""From a finished file in the drop folder to a journaled update."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edged.errors import DeferredError, EdgedError, RejectedError
from service.config.load import ModelConfig
from service.daemon.context import Context
from service.intake.claim import GoneError, NotSettledError, claim
from service.intake.drop_folder import Refusal
from service.intake.watcher import Drop
from service.journal.states import State
from service.journal.store import Update
from service.system.liveness import Loop

log = logging.getLogger(__name__)

_SLOWEST_COPY = 1 << 20  # bytes a second; a drop folder may be a share behind a thin line
_REMEMBERED = 200  # refusals that are not journaled a second time


@dataclass(frozen=True)
class Parked:
    """A file that stays in the drop folder because its model is paused or pinned.

    Attributes:
        drop: As it was found.
        update: Its journaled update, DROPPED.
    """

    drop: Drop
    update: Update


class ClaimQueue:
    """Claims files, one after another.

    Args:
        context: What the supervisor owns.
        offer: Told of every claimed update.
        not_settled: Told of a file that turned out not to be finished.
    """

    def __init__(self, context: Context, offer: Callable[[Update], None], not_settled: Callable[[Drop], None]) -> None:
        self._context = context
        self._offer = offer
        self._not_settled = not_settled
        self._queue: asyncio.Queue[Drop | Refusal] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._held: dict[Path, Parked] = {}

    def held(self, model: str) -> int:
        """Files of a model that wait in the drop folder for an operator."""
        return sum(held.drop.model == model for held in self._held.values())

    async def release(self, model: str) -> None:
        """Have the files looked at again that were held back, now that they need not be."""
        for held in [held for held in self._held.values() if held.drop.model == model]:
            del self._held[held.drop.path]
            if await asyncio.to_thread(held.drop.path.exists):
                self._not_settled(held.drop)
            else:
                reason = f"{held.drop.path.name} was taken out of the drop folder while it waited"
                await self._journal_end(held.update, State.FAILED, GoneError.code, reason)
        self._count_held(model)

    def put(self, found: Drop | Refusal) -> None:
        """Queue what the watcher found."""
        self._queue.put_nowait(found)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; what is still in the drop folder is found after the next start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        with self._context.liveness.loop("intake") as loop:
            while True:
                await self._next(loop)

    async def _next(self, loop: Loop) -> None:
        loop.expect_within(None)
        found = await self._queue.get()
        loop.expect_within(found.size / _SLOWEST_COPY)
        try:
            if isinstance(found, Drop):
                await self._take(found)
            else:
                await self._refuse(found)
        except EdgedError as error:  # the journal cannot be written, say; the file stays where it is
            log.error("cannot take %s: %s", found.path.name, error)
        except Exception:  # a mistake in this program must not end the intake
            log.exception("cannot take %s", found.path.name)

    async def _take(self, drop: Drop) -> None:
        context = self._context
        model = context.config.model(drop.model)
        if model is None:
            return
        if (held := context.holds.why(drop.model)) is not None:
            await self._hold_back(drop, *held)
            return
        update = await self._create(drop.model, drop.path.name, drop.size, drop.seen_at)
        stages = {"settle": max(0.0, time.time() - drop.seen_at)}
        context.metrics.stage_duration.labels(drop.model, "settle").observe(stages["settle"])
        await context.advance(update.id, State.SETTLED, stages=stages)
        try:
            update = await self._claim(drop, model, update, stages)
        except NotSettledError as error:
            log.info("update %d of %s: %s", update.id, drop.model, error)
            self._not_settled(drop)
        except EdgedError as error:
            await self._cannot_claim(drop, update, error)
        else:
            log.info("update %d of %s claimed: %s, %d bytes", update.id, drop.model, update.file_name, drop.size)
            self._offer(update)

    async def _hold_back(self, drop: Drop, code: str, reason: str) -> None:
        """Leave the file where it is, and say why where a user looks for it."""
        context = self._context
        update = await self._create(drop.model, drop.path.name, drop.size, drop.seen_at)
        await context.disk(context.journal.annotate, update.id, code=code, reason=reason)
        self._held[drop.path] = Parked(drop, update)
        self._count_held(drop.model)
        log.warning("update %d of %s waits in the drop folder: %s", update.id, drop.model, reason)

    async def _create(self, model: str, file_name: str, size: int, seen_at: float) -> Update:
        context = self._context
        context.metrics.last_drop.labels(model).set(seen_at)
        return await context.disk(context.journal.create, model, file_name, size, seen_at)

    def _count_held(self, model: str) -> None:
        self._context.metrics.drops_held.labels(model).set(self.held(model))

    async def _claim(self, drop: Drop, model: ModelConfig, update: Update, stages: dict[str, float]) -> Update:
        context, start = self._context, time.monotonic()

        def journal(sha256: str, size: int) -> None:
            stages["claim"] = round(time.monotonic() - start, 3)
            fields = {"sha256": sha256, "key": model.key(sha256), "file_bytes": size, "stages": stages}
            context.journal.advance(update.id, State.CLAIMED, **fields)

        # Not in the thread for the disk: copying takes long, and the journal must answer meanwhile.
        limit = context.config.watch.max_bytes
        await asyncio.to_thread(
            claim, drop.path, context.paths.claimed, max_bytes=limit, quiet=drop.quiet, journal=journal
        )
        context.metrics.stage_duration.labels(drop.model, "claim").observe(stages["claim"])
        return await context.get(update.id)

    async def _cannot_claim(self, drop: Drop, update: Update, error: EdgedError) -> None:
        """The file is at fault and stays where it is, or the disk is: then it is found again by and by."""
        if isinstance(error, RejectedError):
            await self._journal_end(update, State.REJECTED, error.code, str(error))
        elif isinstance(error, DeferredError):  # taken away
            await self._journal_end(update, State.FAILED, error.code, str(error))
        else:
            log.error("update %d of %s: %s", update.id, update.model, error)
            self._not_settled(drop)

    async def _refuse(self, refusal: Refusal) -> None:
        """What the watcher does not take stays where it is; it is journaled once."""
        context, name = self._context, refusal.path.name
        if not refusal.model:
            log.error("drop folder: %s: %s", refusal.path, refusal.reason)
            return
        known = await context.disk(context.journal.list, model=refusal.model, state=State.REJECTED, limit=_REMEMBERED)
        identity = (name, refusal.size, refusal.code)
        if any((update.file_name, update.file_bytes, update.code) == identity for update in known):
            return
        update = await self._create(refusal.model, name, refusal.size, time.time())
        await self._journal_end(update, State.REJECTED, refusal.code, f"{name}: {refusal.reason}")

    async def _journal_end(self, update: Update, state: State, code: str, reason: str) -> None:
        await self._context.advance(update.id, state, code=code, reason=reason)
        self._context.metrics.count_update(update.model, state.value.lower(), code)
        log.error("update %d of %s %s: %s", update.id, update.model, state.value.lower(), reason)
