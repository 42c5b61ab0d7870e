"""One try of one update, from the claimed file to the committed generation. Every step is journaled before the next."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edged.errors import StateError
from service.config.load import ModelConfig
from service.daemon.context import Context
from service.journal.states import STAGES, State
from service.journal.store import Update
from service.journal.update import PINNED
from service.outcomes import Failure, PostponedError, StoppedError
from service.reporting.data import ResourceTrace
from service.reporting.files import keep_resource_trace, write_report
from service.rollout.probation import notice_rollback, prove
from service.rollout.swap import go_live
from service.updates.admission import stay_within, why_not
from service.updates.rejected import discard
from service.worker.job import Gates, Job
from service.worker.process import WorkerLimits, WorkerProcess

log = logging.getLogger(__name__)

_STATE_AFTER = dict(
    zip(STAGES, (State.VERIFIED, State.LOADED, State.CALIBRATED, State.QUANTIZED, State.EVALUATED), strict=True)
)
_PUBLISHED = (State.PUBLISHED, State.WARMED, State.LIVE)


class Attempt:
    """One try.

    Args:
        context: What the supervisor owns.
        update: As journaled: CLAIMED, or PUBLISHED or LIVE after a restart.
        model: Its model's configuration.
        progress: Told by update id what the worker is doing.
    """

    def __init__(
        self, context: Context, update: Update, model: ModelConfig, progress: dict[int, dict[str, Any]]
    ) -> None:
        self._context = context
        self._update = update
        self._model = model
        self._progress = progress
        self._stages: dict[str, float] = dict(update.stages)
        self._totals: dict[str, Any] = {}
        self._worker_started = 0.0

    async def run(self) -> None:
        """Take the update to COMMITTED.

        Raises:
            StoppedError: The file was refused before, or the worker failed.
            PostponedError: The worker may not start now.
            RolledBackError: It went live and was taken out of service again.
            EdgedError: Publishing or warming failed, or a gate is shut.
        """
        await notice_rollback(self._context, self._update.id)
        generation = self._update.generation if self._update.state in _PUBLISHED else await self._known_generation()
        if generation is None:
            async with self._context.worker_lock.turn(self._model.priority):
                if (postponement := await why_not(self._context, self._update, self._model)) is not None:
                    raise PostponedError(postponement)
                await self._quantize()
            generation = await self._publish()
        resumed = self._update.state is State.LIVE
        try:
            unchanged = not await self._go_live(generation)
            log.info("update %d of %s is live as generation %d", self._update.id, self._update.model, generation)
            await write_report(self._context, self._update.id)
            problem = await prove(self._context, self._update.id, self._model, generation, self._note, resumed=resumed)
        finally:
            await self._end_comparison()
        await self._finish(generation, unchanged, problem)

    async def _known_generation(self) -> int | None:
        """The generation that the same file under the same config became before, if it can be used again.

        Raises:
            StoppedError: It was refused before: a bad file is never tried twice.
        """
        context, update = self._context, self._update
        before = await context.disk(context.journal.last_for_key, update.key or "", before=update.id)
        if before is None:
            return None
        if before.state in (State.REJECTED, State.ROLLED_BACK):
            how = "rejected" if before.state is State.REJECTED else "rolled back"
            reason = f"{before.reason} (the same file was {how} before, as update {before.id})"
            raise StoppedError(Failure(before.code or "rejected", reason, permanent=True))
        generation = before.generation
        if before.state is not State.COMMITTED or generation is None:
            return None
        if not context.store.path(update.model, generation).is_dir():
            return None
        log.info("update %d of %s: the same file became generation %d before", update.id, update.model, generation)
        if context.store.current(update.model) != generation:
            await self._advance(State.PUBLISHED, generation=generation, report=before.report)
        return generation

    async def _quantize(self) -> None:
        context, update = self._context, self._update
        context.metrics.show_postponed(update.model, None)
        await context.disk(shutil.rmtree, context.staged(update), ignore_errors=True)
        self._worker_started = time.monotonic()
        worker = WorkerProcess(self._job(), self._limits(), self._on_event, context.liveness)
        began = time.time()
        context.workers[update.model] = worker
        try:
            outcome = await worker.run()
        finally:
            del context.workers[update.model]
        course = ResourceTrace(update.id, began, worker.memory.points, context.config.worker.memory_max)
        await context.disk(keep_resource_trace, context.staged(update), course)
        metrics, name = context.metrics, update.model
        if isinstance(outcome, Failure):
            metrics.worker_peak_memory.labels(name).set(worker.peak_bytes)
            raise StoppedError(outcome)
        self._totals = outcome.totals
        metrics.worker_peak_memory.labels(name).set(self._totals["peak_memory_bytes"])
        metrics.worker_peak_device_memory.labels(name).set(self._totals["peak_device_memory_bytes"])

    def _job(self) -> Job:
        context, model, config = self._context, self._model, self._context.config
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
            gates=Gates(model.gates.min_agreement, model.gates.max_drop, model.gates.min_accuracy),
            detection=model.detection.to_spec(),
            threads=config.worker.threads,
            device=config.worker.device,
            memory_limit=config.worker.memory_max,
            max_bytes=config.watch.max_bytes,
            report_images=model.report_images,
            keep_refused=True,
        )

    def _limits(self) -> WorkerLimits:
        worker = self._context.config.worker
        return WorkerLimits(worker.memory_max, worker.deadline_s, worker.nice)

    async def _on_event(self, event: dict[str, Any]) -> None:
        stage = event.get("stage")
        if event["event"] == "plan":
            log.info("%s: quantizing is planned to take %d MiB", self._update.model, event["peak_bytes"] >> 20)
        elif event["event"] == "progress":
            self._progress[self._update.id] = {key: event[key] for key in ("stage", "done", "total")}
        elif event["event"] == "stage" and event["state"] == "begin":
            self._progress[self._update.id] = {"stage": stage, "done": 0, "total": None}
            if stage == STAGES[0]:
                self._note("start", time.monotonic() - self._worker_started)
        elif event["event"] == "stage" and stage in _STATE_AFTER:
            self._note(stage, event["seconds"])
            await self._advance(_STATE_AFTER[stage])
        elif event["event"] == "stage" and stage == "write":
            self._note(stage, event["seconds"])

    async def _publish(self) -> int:
        context, update = self._context, self._update
        with self._timed("publish"):
            generation: int = await context.disk(context.store.publish, update.model, context.staged(update))
        await self._advance(State.PUBLISHED, generation=generation, report=self._totals)
        return generation

    async def _go_live(self, generation: int) -> bool:
        """Give the traffic to `generation`; False if it has it already."""
        context, name = self._context, self._update.model
        service = context.servers[name]
        while True:
            async with service.switching:
                if service.live is not None and service.live.number == generation == context.store.current(name):
                    await self._step(State.WARMED)
                    await self._step(State.LIVE)
                    return False
                if not context.holds.of(name).pinned:
                    await self._switch(generation)
                    return True
            await self._wait_until_unpinned()

    async def _switch(self, generation: int) -> None:
        context, model = self._context, self._model
        if not context.store.path(model.name, generation).is_dir():
            raise StateError(f"generation {generation} of {model.name} is gone from the disk; it is made again")
        steps = (self._warmed, self._live)
        seconds = await go_live(context, model.name, generation, model.swap, *steps, model.gates, model.shadow_percent)
        self._note("swap", seconds)

    async def _wait_until_unpinned(self) -> None:
        context, update = self._context, self._update
        reason = context.holds.pinned_reason(update.model)
        log.warning("update %d of %s waits: %s", update.id, update.model, reason)
        await context.disk(context.journal.annotate, update.id, code=PINNED, reason=reason)
        await context.holds.until_unpinned(update.model)
        await context.disk(context.journal.annotate, update.id, code=None, reason=None)

    async def _warmed(self, seconds: float, swap: dict[str, Any]) -> None:
        log.info("update %d of %s: warm, swap by %s", self._update.id, self._update.model, swap["policy"])
        self._note("warm", seconds)
        report = (await self._context.get(self._update.id)).report
        await self._step(State.WARMED, report={**report, "swap": swap})

    async def _live(self) -> None:
        await self._step(State.LIVE)
        now, metrics, name = time.time(), self._context.metrics, self._update.model
        metrics.last_success.labels(name).set(now)
        metrics.update_duration.labels(name).observe(now - self._update.dropped_at)

    async def _step(self, state: State, **fields: Any) -> None:
        """Journal WARMED or LIVE, unless the update was beyond it before a restart or never left its generation."""
        now = (await self._context.get(self._update.id)).state
        if (now, state) in ((State.PUBLISHED, State.WARMED), (State.WARMED, State.LIVE)):
            await self._advance(state, **fields)

    async def _end_comparison(self) -> None:
        """Stop comparing live requests, and journal what came of it, however the probation ended."""
        context, service = self._context, self._context.servers[self._update.model]
        shadow = service.shadow
        await service.end_shadow()
        if shadow is not None:
            report = (await context.get(self._update.id)).report
            await context.disk(context.journal.annotate, self._update.id, report={**report, "shadow": shadow.figures})

    async def _finish(self, generation: int, unchanged: bool, problem: str | None) -> None:
        context, update = self._context, self._update
        more: dict[str, Any] = {} if problem is None else {"code": "probation", "reason": problem}
        await self._advance(State.COMMITTED, generation=generation, **more)
        reason = "probation" if problem is not None else "unchanged" if unchanged else ""
        context.metrics.count_update(update.model, "committed", reason)
        if unchanged:
            context.metrics.last_success.labels(update.model).set_to_current_time()
        log.info("update %d of %s is committed", update.id, update.model)
        await write_report(context, update.id)
        if not await context.disk(context.shares_claim, update):
            await context.disk(discard, context.claimed_file(update))
        await context.disk(context.store.prune, update.model, self._model.keep)
        await stay_within(context, self._model)

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
