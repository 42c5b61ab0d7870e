"""Gauges that follow what is live, and those that are read when somebody asks."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.errors import ArtifactError
from service.daemon.context import Context
from service.system.processes import resident_bytes

if TYPE_CHECKING:
    from service.updates.queue import UpdateQueue

log = logging.getLogger(__name__)

RUNTIME = "torch"  # what executes the models
_OVERLAPS = {"map50": "0.5", "map50_95": "0.5:0.95"}


async def show_live(context: Context, model: str, generation: int) -> None:
    """Export what the manifest and the report of a live generation say."""
    context.metrics.forget_drift(model)  # of the one before
    try:
        manifest, report = await context.disk(read_artifact, context, model, generation)
        totals = report["totals"]
        metrics = context.metrics
        quantization, source = manifest["quantization"], manifest["source"]
        metrics.show_model(model, generation, source["sha256"], quantization["bits"], RUNTIME)
        metrics.show_layers(model, [(layer["name"], layer["relative_loss"]) for layer in report["layers"]])
        metrics.artifact_bytes.labels(model).set(totals["artifact_bytes"])
        metrics.checkpoint_bytes.labels(model).set(totals["checkpoint_bytes"])
        metrics.model_agreement.labels(model).set(totals["agreement"] / 100)
        for precision in ("fp32", "quantized"):
            figures = totals.get(precision, {})
            if "top1" in figures:
                metrics.model_accuracy.labels(model, precision).set(figures["top1"] / 100)
            for key, overlap in _OVERLAPS.items():
                if key in figures:
                    metrics.model_map.labels(model, precision, overlap).set(figures[key] / 100)
    except (ArtifactError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("model %s generation %d: cannot export its figures: %r", model, generation, error)


async def show_history(context: Context) -> None:
    """Export what the journal knows of the time before this start."""
    for model, (drop, success) in (await context.disk(context.journal.last_times)).items():
        if model in context.servers:
            context.metrics.last_drop.labels(model).set(drop)
            if success is not None:
                context.metrics.last_success.labels(model).set(success)


def refresh(context: Context, queues: Mapping[str, UpdateQueue]) -> None:
    """Set the gauges that change all the time."""
    metrics, limit = context.metrics, context.config.worker.memory_max
    metrics.worker_memory_limit.set(math.inf if limit is None else limit)
    for name, service in context.servers.items():
        live = service.live
        hold = context.holds.of(name)
        metrics.model_pinned.labels(name).set(hold.pinned)
        metrics.model_paused.labels(name).set(hold.paused)
        metrics.model_ready.labels(name).set(live is not None and live.serving)
        metrics.requests_in_flight.labels(name).set(service.held + (0 if live is None else live.inflight))
        metrics.generation_start.labels(name).set(0 if live is None else live.start_seconds)
        metrics.generation_memory.labels(name).set(0 if live is None else resident_bytes(live.pid))
        worker = context.workers.get(name)
        metrics.worker_memory.labels(name).set(0 if worker is None else resident_bytes(worker.pid))
    for name, lane in queues.items():
        metrics.queue_length.labels(name).set(lane.waiting)


def read_artifact(context: Context, model: str, generation: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """manifest.json and report.json of a generation, as parsed JSON.

    Raises:
        ArtifactError, OSError, ValueError: They cannot be read.
    """
    report: Path = context.store.path(model, generation) / "report.json"
    return context.store.manifest(model, generation), json.loads(report.read_bytes())
