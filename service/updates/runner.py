"""Drives updates: starts each try, and decides what a failure means. Rejected, tried again later, or given up."""

from __future__ import annotations

import logging
import shutil
import time
from typing import Any

from edged.errors import EdgedError, RejectedError, StateError
from service.daemon.context import Context
from service.journal.states import State
from service.journal.store import Update
from service.outcomes import POSTPONED, Failure, PostponedError, Postponement, RolledBackError, StoppedError
from service.reporting.files import keep_evidence, write_report
from service.units import iso_time
from service.updates.admission import why_not
from service.updates.attempt import Attempt
from service.updates.rejected import discard, reject

log = logging.getLogger(__name__)

_MAX_RETRY_S = 3600.0
_RETRY_LIVE_S = 10.0
_IN_SERVICE = (State.LIVE, State.COMMITTED)  # there is no way from here to a failure
_MAX_INTERRUPTIONS = 10  # restarts of the daemon in the middle of one update, which may be what caused them


class UpdateRunner:
    """Takes updates through their states.

    Args:
        context: What the supervisor owns.

    Attributes:
        progress: By update id: what its worker is doing now.
        retry_at: By update id: when it is tried again or looked at again, seconds since 1970.
        postponed: Ids of updates that wait for a better time.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.progress: dict[int, dict[str, Any]] = {}
        self.retry_at: dict[int, float] = {}
        self.postponed: set[int] = set()

    async def drive(self, update: Update) -> float | None:
        """Take one update as far as it goes.

        Returns:
            Seconds until it should be tried again, None if it has ended.
        """
        delay_s = await self._drive(await self._context.get(update.id))
        if delay_s is None:
            self.retry_at.pop(update.id, None)
        else:
            self.retry_at[update.id] = time.time() + delay_s
        return delay_s

    async def _drive(self, update: Update) -> float | None:
        context = self._context
        if update.state is State.DEFERRED:
            if (postponement := await self._still_postponed(update)) is not None:
                return await self._postpone(update, postponement)
            update = await context.advance(update.id, State.CLAIMED)
        self.postponed.discard(update.id)
        try:
            await self._attempt(update)
        except PostponedError as postponed:
            return await self._postpone(update, postponed.postponement)
        except RolledBackError as rolled_back:
            await self._put_aside(update, State.ROLLED_BACK, rolled_back.failure)
            await write_report(self._context, update.id)
            await self._prune(update.model)
            return None
        except StoppedError as stopped:
            failure = stopped.failure
        except EdgedError as error:
            failure = Failure(error.code, str(error), isinstance(error, RejectedError))
        else:
            return None
        finally:
            self.progress.pop(update.id, None)
        return await self._stop(update, failure)

    async def _still_postponed(self, update: Update) -> Postponement | None:
        """Looked at without a move in the journal: it may be looked at a thousand times before it goes on."""
        model = self._context.config.model(update.model)
        if update.code not in POSTPONED or model is None:
            return None
        if self._context.worker_lock.locked():  # its turn has not come in any case, and the others' caches are in use
            return None
        async with self._context.worker_lock:
            return await why_not(self._context, update, model)

    async def _postpone(self, update: Update, postponement: Postponement) -> float:
        """Put an update off; the try that was begun for it counts for nothing."""
        context, why = self._context, {"code": postponement.code, "reason": postponement.reason}
        self.postponed.add(update.id)
        context.metrics.show_postponed(update.model, postponement.code)
        if update.state is State.DEFERRED and update.code == postponement.code:
            return postponement.seconds
        if update.state is State.DEFERRED:
            await context.disk(context.journal.annotate, update.id, **why)
        else:
            await context.advance(update.id, State.DEFERRED, attempt=update.attempt - 1, **why)
        context.metrics.count_deferral(update.model, postponement.code)
        log.warning("update %d of %s waits: %s", update.id, update.model, postponement.reason)
        return postponement.seconds

    async def supersede(self, update: Update, newer: Update) -> None:
        """End an update that waits, because a newer file for the same model came."""
        await self._end(update, State.SUPERSEDED, Failure("superseded", f"update {newer.id} brings a newer file"))

    async def fail(self, update: Update, reason: str) -> None:
        """End an update because of a fault of the daemon itself; one that is live stays so."""
        if (await self._context.get(update.id)).state not in _IN_SERVICE:
            await self._end(update, State.FAILED, Failure("internal", reason))

    async def _attempt(self, update: Update) -> None:
        model = self._context.config.model(update.model)
        if model is None:  # removed from the config just now; its update waits in the journal
            raise EdgedError(f"model {update.model!r} is not configured")
        if update.attempt > self._context.config.worker.tries + _MAX_INTERRUPTIONS:
            reason = f"the daemon was stopped {update.attempt - 1} times in the middle of it"
            raise StoppedError(Failure("interrupted", reason))
        await Attempt(self._context, update, model, self.progress).run()

    async def _stop(self, update: Update, failure: Failure) -> float | None:
        """Reject, fail or defer; an update that is live already goes on from there."""
        if (state := (await self._context.get(update.id)).state) in _IN_SERVICE:
            log.error("update %d of %s, which is live: %s", update.id, update.model, failure.reason)
            return None if state is State.COMMITTED else _RETRY_LIVE_S
        if failure.permanent:
            await self._end(update, State.REJECTED, failure)
            return None
        worker = self._context.config.worker
        if update.attempt >= worker.tries:
            tried = f"{failure.reason} (tried {update.attempt} times)"
            await self._end(update, State.FAILED, Failure(failure.code, tried))
            return None
        delay = float(min(worker.retry_s * 2 ** (update.attempt - 1), _MAX_RETRY_S))
        await self._context.advance(update.id, State.DEFERRED, code=failure.code, reason=failure.reason)
        self._context.metrics.count_deferral(update.model, failure.code)
        log.warning("update %d of %s deferred for %.1f s: %s", update.id, update.model, delay, failure.reason)
        return delay

    async def _end(self, update: Update, state: State, failure: Failure) -> None:
        context, result = self._context, state.value.lower()
        self.retry_at.pop(update.id, None)
        self.postponed.discard(update.id)
        context.metrics.show_postponed(update.model, None)
        # The folder first: a crash in between repeats the update, and so ends here again.
        await self._put_aside(update, state, failure)
        await context.advance(update.id, state, code=failure.code, reason=failure.reason)
        context.metrics.count_update(update.model, result, failure.code)
        await write_report(context, update.id)
        level = logging.INFO if state is State.SUPERSEDED else logging.ERROR
        log.log(level, "update %d of %s %s: %s", update.id, update.model, result, failure.reason)
        await self._prune(update.model)

    async def _prune(self, name: str) -> None:
        """Files that fail only after they were published must not fill the disk either."""
        model = self._context.config.model(name)
        try:
            if model is not None:
                await self._context.disk(self._context.store.prune, name, model.keep)
        except StateError as error:  # the update has ended all the same; the next one tries again
            log.warning("model %s: %s", name, error)

    async def _put_aside(self, update: Update, state: State, failure: Failure) -> None:
        """Keep the file of an update that will not be served, with the reason; drop that of a superseded one."""
        context = self._context
        shared = await context.disk(context.shares_claim, update)
        if state is State.SUPERSEDED:
            if not shared:
                await context.disk(discard, context.claimed_file(update))
        elif update.sha256 is not None:
            reason = {
                "update": update.id,
                "model": update.model,
                "file_name": update.file_name,
                "file_bytes": update.file_bytes,
                "sha256": update.sha256,
                "result": state.value.lower(),
                "code": failure.code,
                "reason": failure.reason,
                "at": iso_time(time.time()),
            }
            folder = context.paths.rejected / update.sha256
            await context.disk(reject, context.claimed_file(update), folder, reason, keep_source=shared)
            await context.disk(keep_evidence, context.staged(update), folder)
        await context.disk(shutil.rmtree, context.staged(update), ignore_errors=True)
