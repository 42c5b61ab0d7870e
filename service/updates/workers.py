"""Starts the worker of an update with what its configuration says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.config.current import CurrentConfig
from service.config.load import Config, DetectionConfig, ModelConfig
from service.journal.update import Update
from service.outcomes import Failure
from service.reporting.data import ResourceTrace
from service.system.liveness import Liveness
from service.updates.files import UpdateFiles
from service.worker.hold_back import HoldBack
from service.worker.interface import Incumbent
from service.worker.job import Job
from service.worker.process import Done, EventHandler, WorkerLimits, WorkerProcess
from service.worker.sandbox import OFF, PARTS, Part, lacking, parts_of

log = logging.getLogger(__name__)


def _private(config: Config) -> tuple[Path, ...]:
    """Return what no worker has to read, even where it is in a folder that one may read."""
    serve = config.serve
    files = (serve.admin_token, serve.inference_token_file)
    return (config.state_dir, config.drop_folder, *(file for file in files if file is not None))


@dataclass(frozen=True)
class WorkerResult:
    """How a worker ended, and what was measured of it.

    Attributes:
        outcome: Whether it has written its artifact.
        peak_bytes: Highest resident memory that was measured, bytes.
        trace: Resident memory over time.
    """

    outcome: Done | Failure
    peak_bytes: int
    trace: ResourceTrace


class Workers:
    """Runs workers. Hold the worker lock, see `service.updates.admission.Admission`.

    Args:
        config: Configuration in force.
        files: Files of the updates.
        liveness: Registers the loop that watches the limits of a worker.
        hold_back: Leaves a core to requests while a worker runs.
        on_sandbox: Called with the parts of the workers' sandbox when they are known, and when they change.

    Attributes:
        hold_back: The same.
        running: Workers that run now, by model name.
    """

    def __init__(
        self,
        config: CurrentConfig,
        files: UpdateFiles,
        liveness: Liveness,
        hold_back: HoldBack | None = None,
        on_sandbox: Callable[[Sequence[Part]], None] = lambda _: None,
    ) -> None:
        self.hold_back = hold_back or HoldBack()
        self.running: dict[str, WorkerProcess] = {}
        self._config = config
        self._files = files
        self._liveness = liveness
        self._on_sandbox = on_sandbox
        self._parts: Sequence[Part] | None = None

    def report_sandbox(self, parts: Sequence[Part] | None = None) -> None:
        """Log what confines workers, and what does not, unless it was logged before.

        Args:
            parts: What a worker reports; None for what this machine offers.
        """
        mode = self._config.current.worker.sandbox
        parts = parts_of(mode) if parts is None else parts
        if parts == self._parts:
            return
        self._parts = parts
        self._on_sandbox(parts)
        missing = lacking(parts)
        if not missing:
            log.info("workers are confined: %s", ", ".join(part.name for part in parts))
        elif mode == OFF:
            log.warning(
                "workers are not confined, because worker.sandbox is off: a file that takes one over can do all"
                " that edged can"
            )
        else:
            log.warning("workers are not confined in full: %s", missing)

    async def run(
        self, update: Update, model: ModelConfig, incumbent: Incumbent | None, on_event: EventHandler
    ) -> WorkerResult:
        """Run the worker of an update to its end. Cancelling kills it.

        Args:
            update: Claimed update.
            model: Configuration of its model.
            incumbent: Generation in service whose interface must not change; None for none.
            on_event: Handler of the worker's events, see service.worker.main.
        """
        hold_back = self.hold_back if self._config.current.worker.fixed_threads is None else None
        job = self._job(update, model, incumbent, len(self.hold_back.cores))

        async def handle(event: dict[str, Any]) -> None:
            if event["event"] == "sandbox":
                self.report_sandbox([Part(name, event["lacking"].get(name)) for name in PARTS])
            await on_event(event)

        worker = WorkerProcess(job, self._limits(), handle, self._liveness, hold_back)
        started_at = time.time()
        self.running[model.name] = worker
        try:
            outcome = await worker.run()
        finally:
            del self.running[model.name]
        memory_max = self._config.current.worker.memory_max
        trace = ResourceTrace(update.id, started_at, worker.memory.points, memory_max, worker.held_back_s)
        return WorkerResult(outcome, worker.peak_bytes, trace)

    def _limits(self) -> WorkerLimits:
        worker = self._config.current.worker
        return WorkerLimits(worker.memory_max, worker.deadline_s, worker.nice)

    def _job(self, update: Update, model: ModelConfig, incumbent: Incumbent | None, cores: int) -> Job:
        config = self._config.current
        fixed = config.worker.fixed_threads
        return Job(
            checkpoint=self._files.claimed(update),
            out=self._files.staged(update),
            calibration_dir=model.calibration.dir,
            cache_root=self._files.caches(model.name),
            spec=model.quantization.to_spec(),
            name=model.name,
            source_name=update.file_name,
            arch=model.arch,
            choice=model.choice,
            input=model.input.overrides(),
            images=model.calibration.images,
            gates=model.gates.to_gates(),
            detection=model.detection.to_spec(),
            detection_given=model.detection != DetectionConfig(),
            class_names=model.labels,
            incumbent=incumbent,
            threads=fixed or cores,  # what the process itself may use says nothing, since it may be held back
            held_back=fixed is None,
            device=config.worker.device,
            memory_limit=config.worker.memory_max,
            max_bytes=config.watch.max_bytes,
            report_images=model.report_images,
            runtime=model.runtime.name,
            serving_device=config.serve.device,
            serving_threads=config.serve.threads or cores,
            serving_batch=model.batching.max_batch,
            engine_folder=self._files.engines(model.name),
            keep_rejected=True,
            sandbox=config.worker.sandbox,
            private=_private(config),
        )
