"""One attempt at one update, from the claimed file to the committed generation.

    CLAIMED > (worker: VERIFIED .. EVALUATED) > PUBLISHED > WARMED > LIVE > COMMITTED

Every step is journaled before the next one begins, so that a restart of the daemon goes on from the last one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edged.errors import NotReadyError, StateError
from service.config.current import CurrentConfig
from service.config.load import ModelConfig
from service.journal.states import STAGE_TABLE, STAGES, State
from service.journal.update import PINNED, Update, UpdateReport
from service.outcomes import Cancelled, Committed, Failure, Outcome, Postponed, RolledBack, Stopped
from service.rollout.gates import interface_on_disk
from service.rollout.recovery import DAMAGED, UNUSABLE
from service.rollout.swap import SwapOptions
from service.serving.model_server import ModelServer
from service.trust.signatures import CODES, Signatures
from service.updates.cancellation import Cancellations, UpdateCancelledError
from service.updates.steps import UpdateSteps
from service.updates.turns import Turns
from service.worker.interface import Incumbent

log = logging.getLogger(__name__)

_WORKER_STAGES = {stage.name: stage for stage in STAGE_TABLE if stage.done_by_worker}
# Codes of rejections that say nothing of the file: its generation was rolled back and may be back, or its signature was
# not accepted, which is checked anew each time.
_PASSED_OVER = ("rollback", "probation", *CODES)
_PUBLISHED = (State.PUBLISHED, State.WARMED, State.LIVE)


@dataclass(frozen=True)
class Observers:
    """What is reported of attempts, and what they are asked.

    Attributes:
        progress: Progress of the workers by update id; an attempt keeps its entry up to date.
        turns: Since when updates wait and are worked on; an attempt keeps its entry up to date.
        cancellations: Updates that an operator wants to end.
        found_fit: Called once the file of an update is known to be a checkpoint of its model.
    """

    progress: dict[int, dict[str, Any]]
    turns: Turns
    cancellations: Cancellations
    found_fit: Callable[[Update], Awaitable[None]]


class Attempt:
    """One attempt at an update.

    Args:
        steps: Parts of the daemon that carry out the steps.
        update: Update as journaled: CLAIMED, or PUBLISHED or LIVE after a restart.
        config: Configuration in force. The newest one counts at each step.
        observers: What is reported of the attempt, and what it is asked.
    """

    def __init__(self, steps: UpdateSteps, update: Update, config: CurrentConfig, observers: Observers) -> None:
        self._steps = steps
        self._records = steps.records
        self._generations = steps.swapper.generations
        self._update = update
        self._config = config
        self._turns = observers.turns
        self._progress = observers.progress
        self._cancellations = observers.cancellations
        self._found_fit = observers.found_fit
        self._stages: dict[str, float] = dict(update.stages)
        self._worker_started = 0.0
        self._worker_waits: dict[str, str] = {}  # what its worker waits for, as an entry of the progress
        self._signatures = Signatures(steps.swapper.holds)

    @property
    def _model(self) -> ModelConfig:
        """The configuration of the model in force."""
        model = self._config.model(self._update.model)
        if model is None:  # a reload has just removed it; the update waits in the journal
            raise NotReadyError(f"model {self._update.model!r} is not configured")
        return model

    async def run(self) -> Outcome:
        """Take the update to COMMITTED, or return what kept it from that.

        Raises:
            EdgedError: A step failed: publishing or warming, for example, or a gate is not met.
        """
        try:
            return await self._run()
        except UpdateCancelledError:
            return Cancelled()

    async def _run(self) -> Outcome:
        if (undone := await self._steps.rollbacks.undone(self._update.id)) is not None:
            return undone
        generation = await self._generation()
        if not isinstance(generation, int):
            return generation
        server = self._steps.swapper.server(self._update.model)
        self._turns.begin(self._update.id)
        try:
            unchanged = not await self._go_live(server, generation)
            log.info(
                "update %d of %s (%s) is live as generation %d",
                self._update.id,
                self._update.model,
                self._update.file_name,
                generation,
            )
            await self._records.reports.write(self._update.id)
            outcome = await self._probation(server)
        finally:
            await self._end_comparison(server)
        if isinstance(outcome, Committed):
            await self._finish(generation, unchanged, outcome.problem)
        return outcome

    async def _generation(self) -> int | Stopped | Postponed:
        """Return the published generation of the update: an existing one, or what the worker makes of the file."""
        if self._update.state in _PUBLISHED and self._update.generation is not None:
            return self._update.generation
        if not await self._follow_config() and (published := await self._published_unjournaled()) is not None:
            await self._advance(State.PUBLISHED, generation=published)
            return published
        await self._check_signature()
        made: UpdateReport | int | Stopped | Postponed | None = await self._known_generation()
        if made is None:
            made = await self._cancellations.run(self._update.id, self._admit_and_quantize())
        if isinstance(made, int):
            await self._found_fit(self._update)
        return await self._publish(made) if isinstance(made, UpdateReport) else made

    async def _published_unjournaled(self) -> int | None:
        """Return the generation that the update was published as right before the daemon died; None if it was not."""
        update = self._update
        if update.generation is None or not self._generations.exists(update.model, update.generation):
            return None
        for event in await self._records.updates.events(update.id):
            if event.state is State.PUBLISHED and event.detail.get("generation") == update.generation:
                return None  # it has been tried since
        return update.generation

    async def _check_signature(self) -> None:
        """Check the signature of the file once more, with the keys in force: the file may have waited, or be old.

        Raises:
            RejectedError: It is not accepted, or not any more.
        """
        await asyncio.to_thread(self._signatures.of_claimed, self._update, self._model)

    async def _follow_config(self) -> bool:
        """Return whether the configuration has changed since the key of the update was computed, which is done anew."""
        update = self._update
        if update.sha256 is None or (key := self._model.key(update.sha256)) == update.key:
            return False
        log.info(
            "update %d of %s (%s): the configuration has changed since its file was dropped",
            update.id,
            update.model,
            update.file_name,
        )
        self._update = await self._records.updates.annotate(update.id, key=key)
        return True

    async def _admit_and_quantize(self) -> UpdateReport | int | Stopped | Postponed:
        """Wait for the worker lock, and run the worker unless the device does not allow it now."""
        admission = self._steps.admission
        async with admission.lock.turn(self._model.priority):
            await self._check_signature()
            if await self._follow_config() and (known := await self._known_generation()) is not None:
                return known
            if (postponement := await admission.why_not(self._update, self._model)) is not None:
                return Postponed(postponement)
            self._note("queue", self._turns.begin(self._update.id))
            await self._records.updates.annotate(self._update.id, stages=self._stages)  # known if the worker fails, too
            totals = await self._quantize()
            return Stopped(totals) if isinstance(totals, Failure) else UpdateReport(totals)

    async def _known_generation(self) -> int | Stopped | None:
        """Return the generation that the same file with the same config became before, if it can be used again.

        A file that was rejected before stops the update: a bad file is tried twice only if an operator asks for it.
        """
        update = self._update
        updates = self._records.updates
        before = await updates.last_for_key(update.key or "", before=update.id)
        while before is not None and before.state is State.REJECTED and before.code in _PASSED_OVER:
            before = await updates.last_for_key(update.key or "", before=before.id)
        if before is None or before.code in (DAMAGED, UNUSABLE):  # its generation is at fault, not the file
            return None
        if before.state in (State.REJECTED, State.ROLLED_BACK):
            if await self._records.updates.retry_of(update.id) is not None:
                return None
            how = "rejected" if before.state is State.REJECTED else "rolled back"
            reason = (
                f"{before.reason} (the same file was {how} before, as update {before.id}, {before.file_name};"
                f" `edged retry {update.id}` takes it nevertheless)"
            )
            return Stopped(Failure(before.code or "rejected", reason, permanent=True))
        generation = before.generation
        if before.state is not State.COMMITTED or generation is None:
            return None
        if not self._generations.exists(update.model, generation):
            return None
        log.info(
            "update %d of %s (%s): the same file became generation %d before",
            update.id,
            update.model,
            update.file_name,
            generation,
        )
        if self._generations.current(update.model) != generation:
            await self._advance(State.PUBLISHED, generation=generation, report=before.report)
        return generation

    async def _quantize(self) -> dict[str, Any] | Failure:
        """Run the worker; returns the totals of its report, or why it failed."""
        update, metrics = self._update, self._records.metrics
        metrics.show_postponed(update.model, None)
        await self._steps.files.prepare_for_worker(update)
        self._worker_started = time.monotonic()
        self._worker_waits = {}
        self._show("start")
        result = await self._steps.workers.run(update, self._model, await self._incumbent(), self._on_worker_event)
        if (odd := await self._steps.files.odd_file(update)) is not None:
            await self._steps.files.clear_staging(update)
            reason = f"the worker left {odd!r:.200}, which is no regular file: its checkpoint may have taken it over"
            return Failure("unsafe_checkpoint", reason, permanent=True)
        self._progress.pop(update.id, None)  # or it would be shown while the generation warms up and is on probation
        await self._steps.files.keep_resource_trace(update, result.trace)
        if isinstance(result.outcome, Failure):
            await self._steps.files.clear_half_written(update)
            metrics.worker_peak_memory.labels(update.model).set(result.peak_bytes)
            return result.outcome
        totals = result.outcome.totals
        metrics.worker_peak_memory.labels(update.model).set(totals["peak_memory_bytes"])
        metrics.worker_peak_device_memory.labels(update.model).set(totals["peak_device_memory_bytes"])
        return totals

    async def _incumbent(self) -> Incumbent | None:
        """Return the generation in service if its interface must not change, and if it is known."""
        current = self._generations.current(self._model.name)
        if not self._model.gates.same_interface or current is None:
            return None
        interface = await interface_on_disk(self._generations, self._model.name, current)
        return None if interface is None else Incumbent(current, interface)

    async def _on_worker_event(self, event: dict[str, Any]) -> None:
        """Keep the progress, the durations of the stages and the journal up to date with the worker."""
        kind, stage = event["event"], event.get("stage")
        if kind == "plan":
            update, planned = self._update, event["peak_bytes"] >> 20
            text = "update %d of %s (%s): quantizing is planned to take %d MiB"
            log.info(text, update.id, update.model, update.file_name, planned)
        elif kind == "progress":
            self._show(str(stage), event["done"], event["total"])
        elif kind == "waits":
            self._worker_waits = {} if event["for"] is None else {"waits_for": event["for"]}
            if (shown := self._progress.get(self._update.id)) is not None:
                self._show(shown["stage"], shown["done"], shown["total"])
        elif kind == "stage" and event["state"] == "begin":
            self._show(str(stage))
            if stage == STAGES[0]:
                self._note("start", time.monotonic() - self._worker_started)
        elif kind == "stage" and stage in _WORKER_STAGES:
            self._note(stage, event["seconds"])
            if (state := _WORKER_STAGES[stage].state_after) is not None:
                await self._advance(state)
            if state is State.LOADED:
                await self._found_fit(self._update)

    def _show(self, stage: str, done: int = 0, total: int | None = None) -> None:
        self._progress[self._update.id] = {"stage": stage, "done": done, "total": total, **self._worker_waits}

    async def _publish(self, report: UpdateReport) -> int:
        update = self._update
        with self._timed("publish"):
            generation = await self._generations.reserve(update.model)
            # Journaled first: after a crash in between, what was published is found again, and not made a second time.
            await self._records.updates.annotate(update.id, generation=generation, report=report)
            await self._generations.publish(update.model, self._steps.files.staged(update), generation)
        await self._advance(State.PUBLISHED, generation=generation, report=report)
        await self._steps.files.clear_staging(update)
        return generation

    async def _go_live(self, server: ModelServer, generation: int) -> bool:
        """Put the generation in service, once the model is not pinned; returns False if it is live already."""
        while True:
            async with server.switching:
                if self._steps.swapper.is_live(server, generation):
                    await self._step(State.WARMED)
                    await self._step(State.LIVE)
                    return False
                if not self._steps.swapper.holds.of(server.name).pinned:
                    self._cancellations.begin_switch(self._update.id)
                    await self._swap(server, generation)
                    return True
            await self._cancellations.run(self._update.id, self._wait_until_unpinned())

    async def _swap(self, server: ModelServer, generation: int) -> None:
        """Prepare, commit, retire: see `service.rollout.swap`."""
        model = self._model
        if not self._generations.exists(model.name, generation):
            raise StateError(f"generation {generation} of {model.name} is gone from the disk; it is made again")
        options = SwapOptions(model.swap, model.gates, model.shadow_percent)
        async with await self._steps.swapper.prepare(server, generation, options) as swap:
            log.info(
                "update %d of %s (%s): warm, swap by %s",
                self._update.id,
                self._update.model,
                self._update.file_name,
                swap.choice.policy,
            )
            self._note("warm", swap.warm_s)
            report = (await self._records.updates.get(self._update.id)).report
            await self._step(State.WARMED, report=dataclasses.replace(report, swap=swap.record))
            await swap.commit()
            await self._step(State.LIVE)
            self._count_live()
            seconds = await swap.retire_previous()
        self._note("swap", seconds)

    async def _wait_until_unpinned(self) -> None:
        update, holds = self._update, self._steps.swapper.holds
        reason = holds.pinned_reason(update.model)
        log.warning("update %d of %s (%s) waits: %s", update.id, update.model, update.file_name, reason)
        await self._records.updates.annotate(update.id, code=PINNED, reason=reason)
        await holds.until_unpinned(update.model)
        await self._records.updates.annotate(update.id, code=None, reason=None)

    def _count_live(self) -> None:
        metrics, name = self._records.metrics, self._update.model
        metrics.last_success.labels(name).set(time.time())
        metrics.update_duration.labels(name).observe(self._records.updates.seconds_since_drop(self._update))

    async def _probation(self, server: ModelServer) -> Committed | RolledBack:
        resumed = self._update.state is State.LIVE
        verdict = await self._steps.probation.run(self._update.id, self._model, server, resumed=resumed)
        if verdict.seconds is not None:
            self._note("probation", verdict.seconds)
        return verdict.outcome

    async def _end_comparison(self, server: ModelServer) -> None:
        """End the comparison of live requests, and journal its result, however the probation ended."""
        shadow = server.shadow
        await server.end_shadow()
        if shadow is not None:
            report = (await self._records.updates.get(self._update.id)).report
            report = dataclasses.replace(report, shadow=shadow.figures)
            await self._records.updates.annotate(self._update.id, report=report)

    async def _finish(self, generation: int, unchanged: bool, problem: str | None) -> None:
        """Commit the update, and remove what it does not need any more."""
        update, metrics = self._update, self._records.metrics
        more: dict[str, Any] = {} if problem is None else {"code": "probation", "reason": problem}
        if update.signature is not None:  # first: a crash in between repeats this
            await self._steps.swapper.holds.raise_version(update.model, update.signature.version)
        if (await self._records.updates.get(update.id)).state is not State.COMMITTED:  # by two rollbacks in a row
            await self._advance(State.COMMITTED, generation=generation, **more)
        reason = "probation" if problem is not None else "unchanged" if unchanged else ""
        metrics.count_update(update.model, "committed", reason)
        if unchanged:
            metrics.last_success.labels(update.model).set_to_current_time()
        log.info("update %d of %s (%s) is committed", update.id, update.model, update.file_name)
        await self._records.reports.write(update.id)
        await self._steps.files.discard_claim(update)
        await self._generations.prune(update.model, self._model.keep)
        await self._steps.admission.free_space(self._model)

    def _note(self, stage: str, seconds: float) -> None:
        """Keep the duration of a stage for the journal, and export it."""
        self._stages[stage] = round(seconds, 3)
        self._records.metrics.stage_duration.labels(self._update.model, stage).observe(seconds)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._note(stage, time.monotonic() - start)

    async def _step(self, state: State, **fields: Any) -> None:
        """Journal WARMED or LIVE, unless the update was beyond it before a restart or never left its generation."""
        now = (await self._records.updates.get(self._update.id)).state
        if (now, state) in ((State.PUBLISHED, State.WARMED), (State.WARMED, State.LIVE)):
            await self._advance(state, **fields)

    async def _advance(self, state: State, **fields: Any) -> None:
        await self._records.updates.advance(self._update.id, state, stages=self._stages, **fields)
