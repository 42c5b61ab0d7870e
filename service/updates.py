"""The way of one update, from the claimed file to the committed generation. Every step is journaled before the next."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from edged.errors import EdgedError, RejectedError
from service.config import ModelConfig
from service.context import Context
from service.gauges import show_live
from service.generation import Generation
from service.job import STAGES, Gates, Job
from service.journal import Update
from service.rejects import discard, reject
from service.serving import ModelService
from service.states import State
from service.units import iso_time
from service.worker_process import Done, Failure, WorkerLimits, WorkerProcess

log = logging.getLogger(__name__)

_STATE_AFTER = dict(
    zip(STAGES, (State.VERIFIED, State.LOADED, State.CALIBRATED, State.QUANTIZED, State.EVALUATED), strict=True)
)
_PUBLISHED = (State.PUBLISHED, State.WARMED, State.LIVE)
_MAX_RETRY_S = 3600.0
_ROOM_FOR_TWO = 1.5  # a second generation fits if this many times the first one's memory is free


class StoppedError(Exception):
    """The update cannot go on; the failure says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class UpdateRunner:
    """Drives updates through their states.

    Args:
        context: What the supervisor owns.

    Attributes:
        progress: By update id: what its worker is doing now.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.progress: dict[int, dict[str, Any]] = {}

    async def drive(self, update: Update) -> float | None:
        """Take one update as far as it goes.

        Returns:
            Seconds until it should be tried again, None if it has ended.
        """
        context = self._context
        model = context.config.model(update.model)
        if model is None:
            await self._end(update, State.FAILED, Failure("config", f"model {update.model!r} is not configured any more"))
            return None
        try:
            await _Attempt(context, update, model, self.progress).run()
        except StoppedError as stopped:
            failure = stopped.failure
        except EdgedError as error:
            failure = Failure(error.code, str(error), isinstance(error, RejectedError))
        else:
            return None
        finally:
            self.progress.pop(update.id, None)
        return await self._stop(update, failure)

    async def supersede(self, update: Update, newer: Update) -> None:
        """End an update that waits, because a newer file for the same model came."""
        await self._end(update, State.SUPERSEDED, Failure("superseded", f"update {newer.id} brings a newer file"))

    async def fail(self, update: Update, reason: str) -> None:
        """End an update because of a fault of the daemon itself."""
        await self._end(update, State.FAILED, Failure("internal", reason))

    async def _stop(self, update: Update, failure: Failure) -> float | None:
        """Reject, fail or defer."""
        if failure.permanent:
            await self._end(update, State.REJECTED, failure)
            return None
        attempt = (await self._context.get(update.id)).attempt
        worker = self._context.config.worker
        if attempt >= worker.tries:
            tried = f"{failure.reason} (tried {attempt} times)"
            await self._end(update, State.FAILED, Failure(failure.code, tried))
            return None
        delay = float(min(worker.retry_s * 2 ** (attempt - 1), _MAX_RETRY_S))
        await self._context.advance(update.id, State.DEFERRED, code=failure.code, reason=failure.reason)
        log.warning("update %d of %s deferred for %.0f s: %s", update.id, update.model, delay, failure.reason)
        return delay

    async def _end(self, update: Update, state: State, failure: Failure) -> None:
        context = self._context
        claimed = context.claimed_file(update)
        # The folder first: a crash in between repeats the update, and so ends here again.
        if state in (State.REJECTED, State.FAILED) and update.sha256:
            reason = {
                "update": update.id,
                "model": update.model,
                "file_name": update.file_name,
                "sha256": update.sha256,
                "result": state.name.lower(),
                "code": failure.code,
                "reason": failure.reason,
                "at": iso_time(time.time()),
            }
            shared = await context.disk(context.shares_claim, update)
            folder = context.paths.rejected / update.sha256
            await context.disk(reject, claimed, folder, reason, keep_source=shared)
        elif not await context.disk(context.shares_claim, update):
            await context.disk(discard, claimed)
        await context.advance(update.id, state, code=failure.code, reason=failure.reason)
        context.metrics.updates.labels(update.model, state.name.lower(), failure.code).inc()
        level = logging.INFO if state is State.SUPERSEDED else logging.ERROR
        log.log(level, "update %d of %s %s: %s", update.id, update.model, state.name.lower(), failure.reason)
        await context.disk(shutil.rmtree, context.staged(update), ignore_errors=True)


class _Attempt:
    """One try of one update."""

    def __init__(
        self, context: Context, update: Update, model: ModelConfig, progress: dict[int, dict[str, Any]]
    ) -> None:
        self._context = context
        self._update = update
        self._model = model
        self._progress = progress
        self._stages: dict[str, float] = dict(update.stages)
        self._totals: dict[str, Any] = {}

    async def run(self) -> None:
        """Take the update to COMMITTED, wherever a restart found it.

        Raises:
            StoppedError: The worker failed.
            EdgedError: Publishing or warming failed.
        """
        update, store = self._update, self._context.store
        state, generation = update.state, update.generation
        if state not in _PUBLISHED or generation is None or not store.path(update.model, generation).is_dir():
            async with self._context.worker_slot:
                await self._quantize()
            generation = await self._publish()
            state = State.PUBLISHED
        await self._go_live(generation, state)
        await self._clean_up(generation)

    async def _quantize(self) -> None:
        context, update = self._context, self._update
        await context.begin_attempt(update)
        await context.disk(shutil.rmtree, context.staged(update), ignore_errors=True)
        worker = WorkerProcess(self._job(), self._limits(), self._on_event)
        outcome = await worker.run()
        if isinstance(outcome, Failure):
            context.metrics.worker_peak_memory.labels(update.model).set(worker.peak_bytes)
            raise StoppedError(outcome)
        context.metrics.worker_peak_memory.labels(update.model).set(outcome.totals["peak_memory_bytes"])
        self._totals = outcome.totals

    def _job(self) -> Job:
        context, model = self._context, self._model
        return Job(
            checkpoint=context.claimed_file(self._update),
            out=context.staged(self._update),
            calibration_dir=model.calibration.dir,
            cache_root=context.paths.calibration(model.name),
            spec=model.quantization.to_spec(),
            name=model.name,
            source_name=self._update.file_name,
            arch=model.arch,
            input=model.input.overrides(),
            images=model.calibration.images,
            gates=Gates(model.gates.min_agreement, model.gates.max_drop),
            threads=context.config.worker.threads,
            max_bytes=context.config.watch.max_bytes,
        )

    def _limits(self) -> WorkerLimits:
        worker = self._context.config.worker
        return WorkerLimits(worker.memory_max, worker.deadline_s, worker.nice)

    async def _on_event(self, event: dict[str, Any]) -> None:
        stage = event.get("stage")
        if event["event"] == "progress":
            self._progress[self._update.id] = {key: event[key] for key in ("stage", "done", "total")}
        elif event["event"] == "stage" and event["state"] == "begin":
            self._progress[self._update.id] = {"stage": stage, "done": 0, "total": None}
        elif event["event"] == "stage" and stage in _STATE_AFTER:
            self._note(stage, event["seconds"])
            await self._advance(_STATE_AFTER[stage])

    async def _publish(self) -> int:
        context, update = self._context, self._update
        with self._timed("publish"):
            generation: int = await context.disk(context.store.publish, update.model, context.staged(update))
        await self._advance(State.PUBLISHED, generation=generation, report=self._totals)
        return generation

    async def _go_live(self, number: int, state: State) -> None:
        """Warm the generation, make it current, route to it, let the one before finish."""
        context, name = self._context, self._update.model
        service = context.services[name]
        async with service.switching:
            if service.live is not None and service.live.number == number:  # a restart after the commit point
                if state is State.PUBLISHED:
                    await self._advance(State.WARMED)
                if state is not State.LIVE:
                    await self._advance(State.LIVE)
                await self._advance(State.COMMITTED)
                return
            generation = await self._warm(service, number, state)
            try:
                await context.disk(context.store.switch, name, number)
            except BaseException:
                await generation.stop()
                context.keep_current(name)
                raise
            await self._swap(service, generation, state)

    async def _warm(self, service: ModelService, number: int, state: State) -> Generation:
        policy = _swap_policy(self._model.swap, service)
        log.info("update %d of %s: swap by %s", self._update.id, self._update.model, policy)
        with self._timed("warm"):
            if policy == "resource":
                await service.pause()
            try:
                generation = await service.prepare(number)
            except BaseException:
                self._context.keep_current(self._update.model)
                raise
        if state is State.PUBLISHED:
            await self._advance(State.WARMED, detail={"swap": policy})
        return generation

    async def _swap(self, service: ModelService, generation: Generation, state: State) -> None:
        with self._timed("swap"):
            before = service.route(generation)
            if state is not State.LIVE:
                await self._advance(State.LIVE)
            if before is not None:
                await service.retire(before)
        self._context.metrics.swap_duration.labels(self._update.model).observe(self._stages["swap"])
        await self._advance(State.COMMITTED)

    async def _clean_up(self, generation: int) -> None:
        context, update = self._context, self._update
        now, metrics = time.time(), context.metrics
        metrics.updates.labels(update.model, "committed", "").inc()
        metrics.update_duration.labels(update.model).observe(now - update.dropped_at)
        metrics.last_success.labels(update.model).set(now)
        await show_live(context, update.model, generation)
        log.info("update %d of %s is live as generation %d", update.id, update.model, generation)
        if not await context.disk(context.shares_claim, update):
            await context.disk(discard, context.claimed_file(update))
        await context.disk(context.store.prune, update.model, self._model.keep)

    def _note(self, stage: str, seconds: float) -> None:
        self._stages[stage] = round(seconds, 3)
        self._context.metrics.stage_duration.labels(self._update.model, stage).observe(seconds)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._note(stage, time.monotonic() - start)

    async def _advance(self, state: State, **fields: Any) -> None:
        await self._context.advance(self._update.id, state, stages=self._stages, **fields)
