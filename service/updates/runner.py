"""Drives updates: starts each attempt, and decides what follows from its outcome."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from edged.errors import EdgedError, StateError
from service.config.current import CurrentConfig
from service.journal.states import GOING_LIVE, NEXT, State, is_end
from service.journal.update import Update
from service.outcomes import (
    POSTPONED,
    Cancelled,
    Committed,
    Failure,
    Outcome,
    Postponed,
    Postponement,
    RolledBack,
    Stopped,
    is_fault_of_device,
)
from service.updates.attempt import Attempt, Observers
from service.updates.cancellation import Cancellations
from service.updates.steps import UpdateSteps
from service.updates.turns import Turns

log = logging.getLogger(__name__)

_MAX_RETRY_S = 3600.0
_RETRY_LIVE_S = 10.0
_RETRY_JOURNAL_S = 10.0
_IN_SERVICE = (State.LIVE, State.COMMITTED)  # no failure leads out of these states
_ABANDONED = (State.SUPERSEDED, State.CANCELLED)  # ends for which neither the file nor the device is at fault
# How often the daemon or the device may die in the middle of an update, which may be the cause. Stops do not count.
_MAX_INTERRUPTIONS = 10
_INTERRUPTED = "interrupted"


class UpdateRunner:
    """Takes updates through their states.

    Args:
        config: Configuration in force.
        steps: Parts of the daemon that carry out the steps of an update.

    Attributes:
        progress: What the worker of an update is doing now, by update id.
        retry_at: When a deferred update is tried or rechecked, in seconds since 1970, by update id.
        postponed: Conditions of the device that updates wait for, as they were when last checked, by update id.
        unjournaled: Why updates wait that could not be deferred, because the journal cannot be written, by update id.
        turns: Since when updates wait for their turn and are worked on.
        cancellations: Updates that an operator wants to end while they are being worked on.
        found_fit: Called once the file of an update is known to be a checkpoint of its model.
    """

    def __init__(self, config: CurrentConfig, steps: UpdateSteps) -> None:
        self._config = config
        self._steps = steps
        self._records = steps.records
        self.progress: dict[int, dict[str, Any]] = {}
        self.retry_at: dict[int, float] = {}
        self.postponed: dict[int, str] = {}
        self.unjournaled: dict[int, str] = {}
        self.turns = Turns()
        self.cancellations = Cancellations()
        self.found_fit: Callable[[Update], Awaitable[None]] = _ignore

    async def drive(self, update: Update) -> float | None:
        """Take an update as far as it goes. If the journal cannot be written, the update waits until it can.

        Returns:
            Seconds until the next attempt; None if the update has ended.
        """
        try:
            delay_s = await self._drive(await self._journal_wait(await self._records.updates.get(update.id)))
            if self.cancellations.is_requested(update.id) and delay_s is not None:
                delay_s = await self._conclude(update, Cancelled())
        except (StateError, OSError) as error:
            if not is_fault_of_device(error):
                raise
            self.unjournaled[update.id] = str(error)
            log.error("update %d of %s (%s) waits: %s", update.id, update.model, update.file_name, error)
            delay_s = _RETRY_JOURNAL_S
        finally:
            self.cancellations.settle(update.id, cancelled=False)
        self.turns.end(update.id)
        if delay_s is None:
            self.retry_at.pop(update.id, None)
            self.unjournaled.pop(update.id, None)
        else:
            self.retry_at[update.id] = time.time() + delay_s
        return delay_s

    def as_known(self, update: Update) -> Update:
        """Return an update with what could not be journaled: that it waits, and why."""
        reason = self.unjournaled.get(update.id)
        if reason is None or is_end(update.state):
            return update
        state = update.state if update.state in GOING_LIVE else State.DEFERRED
        return dataclasses.replace(update, state=state, code=StateError.code, reason=reason)

    async def _journal_wait(self, update: Update) -> Update:
        """Journal why an update has waited, which could not be journaled then; return it as it goes on.

        Its last attempt was given up in the middle, and does not count.
        """
        if (reason := self.unjournaled.get(update.id)) is not None:
            why: dict[str, Any] = {"code": StateError.code, "reason": reason}
            if State.DEFERRED in NEXT.get(update.state, ()) and update.state not in GOING_LIVE:
                attempt = max(0, update.attempt - 1)
                update = await self._records.updates.advance(update.id, State.DEFERRED, attempt=attempt, **why)
                self._records.metrics.count_deferral(update.model, StateError.code)
            else:
                await self._records.updates.note(update.id, why)
            del self.unjournaled[update.id]
        return update

    async def _drive(self, update: Update) -> float | None:
        if update.state is State.DEFERRED:
            if (postponement := await self._still_postponed(update)) is not None:
                return await self._postpone(update, postponement)
            update = await self._records.updates.advance(update.id, State.CLAIMED)
        self.turns.wait(update.id)
        self.postponed.pop(update.id, None)
        try:
            outcome = await self._attempt(update)
        finally:
            self.progress.pop(update.id, None)
        return await self._conclude(update, outcome)

    async def _conclude(self, update: Update, outcome: Outcome) -> float | None:
        """Decide what follows from the outcome of an attempt; return the seconds until the next one."""
        if not isinstance(outcome, (Committed, Postponed)) and (problem := await self._state_problem()) is not None:
            outcome = Stopped(Failure(StateError.code, problem))  # which may be why it failed
        match outcome:
            case Committed():
                return None
            case Postponed(postponement):
                return await self._postpone(update, postponement)
            case RolledBack(failure):
                await self._steps.files.quarantine(update, State.ROLLED_BACK, failure)
                await self._steps.files.discard_claim(update)
                await self._records.reports.write(update.id)
                await self._prune(update.model)
                return None
            case Cancelled():
                await self.cancel(update)
                self.cancellations.settle(update.id, cancelled=True)
                return None
            case Stopped(failure):
                return await self._stop(update, failure)

    async def _attempt(self, update: Update) -> Outcome:
        """Make one attempt. An error of the library stops the update."""
        interruptions = update.attempt - (await self._tries(update))[0]
        if interruptions > _MAX_INTERRUPTIONS:
            reason = f"the daemon or the device died {interruptions} times in the middle of it"
            return Stopped(Failure(_INTERRUPTED, reason))
        if (problem := await self._state_problem()) is not None:
            return Stopped(Failure(StateError.code, problem))
        try:
            observers = Observers(self.progress, self.turns, self.cancellations, self.found_fit)
            return await Attempt(self._steps, update, self._config, observers).run()
        except EdgedError as error:
            return Stopped(Failure.of(error))

    async def _state_problem(self) -> str | None:
        return await asyncio.to_thread(self._steps.state_problem)

    async def _still_postponed(self, update: Update) -> Postponement | None:
        """Recheck a postponed update without a transition: that may happen a thousand times before it goes on."""
        model = self._config.model(update.model)
        if update.code not in POSTPONED or model is None:
            return None
        admission = self._steps.admission
        if admission.lock.locked():  # it has to wait its turn in any case, and the caches are in use
            return None
        async with admission.lock:
            return await admission.why_not(update, model)

    async def _postpone(self, update: Update, postponement: Postponement) -> float:
        """Defer an update; the attempt that was begun for it does not count."""
        metrics, updates = self._records.metrics, self._records.updates
        self.postponed[update.id] = postponement.reason
        metrics.show_postponed(update.model, postponement.code)
        if update.state is State.DEFERRED and update.code == postponement.code:
            return postponement.seconds
        why: dict[str, Any] = {"code": postponement.code, "reason": postponement.reason}
        if update.state is State.DEFERRED:
            await updates.annotate(update.id, **why)
        else:
            await updates.advance(update.id, State.DEFERRED, attempt=update.attempt - 1, **why)
        metrics.count_deferral(update.model, postponement.code)
        again = f"{postponement.reason}; checked again in {postponement.seconds:.0f} s"
        log.warning("update %d of %s (%s) waits: %s", update.id, update.model, update.file_name, again)
        return postponement.seconds

    async def supersede(self, update: Update, newer: Update) -> None:
        """End a waiting update because the newer file of another one was found fit for the same model."""
        reason = (
            f"update {newer.id} brings a newer file, {newer.file_name}; `edged retry {update.id}` takes this one again"
        )
        await self._end(update, State.SUPERSEDED, Failure("superseded", reason))

    async def reject_truncated(self, update: Update, missing: str) -> None:
        """End a claimed update whose file is cut off, and was not completed in time."""
        reason = f"it is cut off: {missing}; copy it again, to a temporary name, and rename it when it is complete"
        await self._end(update, State.REJECTED, Failure("truncated", reason, permanent=True))

    async def cancel(self, update: Update) -> None:
        """End a waiting update because an operator cancels it."""
        reason = f"an operator cancelled it; `edged retry {update.id}` takes the file again"
        await self._end(update, State.CANCELLED, Failure("cancelled", reason))

    async def is_going_live(self, update: Update) -> bool:
        """Return whether an update is published or live and has not ended."""
        return (await self._records.updates.get(update.id)).state in GOING_LIVE

    async def fail(self, update: Update, reason: str) -> None:
        """End an update because of a fault of the daemon itself. An update that is live stays live."""
        if (await self._records.updates.get(update.id)).state not in _IN_SERVICE:
            await self._end(update, State.FAILED, Failure("internal", reason))

    async def _stop(self, update: Update, failure: Failure) -> float | None:
        """Reject, fail or defer an update. An update that is live already goes on from there."""
        if (state := (await self._records.updates.get(update.id)).state) in _IN_SERVICE:
            log.error(
                "update %d of %s (%s), which is live: %s", update.id, update.model, update.file_name, failure.reason
            )
            return None if state is State.COMMITTED else _RETRY_LIVE_S
        if failure.permanent:
            await self._end(update, State.REJECTED, failure)
            return None
        worker = self._config.current.worker
        if failure.code == _INTERRUPTED:  # once more may be once too often
            await self._end(update, State.FAILED, failure)
            return None
        tries, waits = await self._tries(update)
        # A full disk is no reason to give a file up: it waits, however long, until there is room.
        passing = failure.code == StateError.code
        if tries >= worker.tries and not passing:
            tried = f"{failure.reason} (tried {tries} times)"
            await self._end(update, State.FAILED, Failure(failure.code, tried))
            return None
        delay = float(min(worker.retry_s * 2 ** (min(tries + waits, worker.tries) - 1), _MAX_RETRY_S))
        why: dict[str, Any] = {"code": failure.code, "reason": failure.reason}
        await self._records.updates.advance(update.id, State.DEFERRED, attempt=update.attempt - passing, **why)
        self._records.metrics.count_deferral(update.model, failure.code)
        log.warning(
            "update %d of %s (%s) deferred for %.1f s: %s",
            update.id,
            update.model,
            update.file_name,
            delay,
            failure.reason,
        )
        return delay

    async def _tries(self, update: Update) -> tuple[int, int]:
        """Return how often an update was tried, this time included, and how often the disk was what kept it.

        Neither interruptions nor postponements count.
        """
        events = await self._records.updates.events(update.id)
        codes = [event.detail.get("code") for event in events if event.state is State.DEFERRED]
        failed = [code for code in codes if code is not None and code not in POSTPONED]
        waits = failed.count(StateError.code)
        return 1 + len(failed) - waits, waits

    async def _end(self, update: Update, state: State, failure: Failure) -> None:
        """End an update that will not be served."""
        records, result = self._records, state.value.lower()
        if (problem := await self._state_problem()) is not None:
            raise StateError(problem)
        if is_end((await records.updates.get(update.id)).state):  # a crash kept the queue from knowing
            return
        self.retry_at.pop(update.id, None)
        self.postponed.pop(update.id, None)
        self.unjournaled.pop(update.id, None)
        self.turns.end(update.id)
        records.metrics.show_postponed(update.model, None)
        # Kept first: a crash in between repeats the update, which ends here again. The claimed file is removed last, so
        # that no open update is without its file.
        await self._steps.files.quarantine(update, state, failure)
        await records.updates.advance(update.id, state, code=failure.code, reason=failure.reason)
        await self._steps.files.discard_claim(update)
        records.metrics.count_update(update.model, result, failure.code)
        await records.reports.write(update.id)
        level = logging.WARNING if state in _ABANDONED else logging.ERROR
        log.log(level, "update %d of %s (%s) %s: %s", update.id, update.model, update.file_name, result, failure.reason)
        await self._prune(update.model)

    async def _prune(self, name: str) -> None:
        """Remove old generations: files that fail only after they were published must not fill the disk either."""
        model = self._config.model(name)
        try:
            if model is not None:
                await self._steps.swapper.generations.prune(name, model.keep)
        except StateError as error:  # the update has ended; the next one tries again
            log.warning("model %s: %s", name, error)


async def _ignore(_: Update) -> None:
    """Do nothing, because there is no queue."""
