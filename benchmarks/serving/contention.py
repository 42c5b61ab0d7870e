"""Latency of a model while another one is quantized, and how long that takes then. Used by benchmarks.serving."""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.serving.daemon import Edged, checkpoint
from benchmarks.serving.effort import RATE, Effort, Rows, figures
from benchmarks.serving.load import Load, between
from edged.models.registry import Architecture
from service.journal.states import WORKER_STAGES
from service.system.processes import cores

BIG = Architecture("resnet50", 10)  # takes at least half a minute to quantize at BIG_SIDE pixels
BIG_SIDE = 160


def contention(effort: Effort) -> Rows:
    """Measure latency while the worker quantizes another model, with and without edged's scheduling; then its time.

    Returns:
        A row for each variant with "idle" and "quantizing", then rows with the seconds that a quantization "took".
    """
    all_cores = {"threads": cores()}
    variants: dict[str, dict[str, Any]] = {
        "default": {},
        "all cores for the worker": {"worker": all_cores},
        "one thread for the worker": {"worker": {"threads": 1}},
        "all cores for the worker, one thread for the model": {
            "worker": all_cores,
            "serve": {"port": 0, "threads": 1},
        },
        "all cores, not niced": {"worker": {"nice": 0, **all_cores}},
        "all cores, OpenMP's default waiting": {"worker": all_cores, "altered": "spinning"},
        "all cores, not niced, default waiting": {"worker": {"nice": 0, **all_cores}, "altered": "spinning"},
    }
    rows = [
        {"variant": name, **_latencies(effort, options)} for name, options in list(variants.items())[: effort.variants]
    ]
    timed = {name: variants[name] for name in ("default", "all cores for the worker")}
    return [*rows, *_durations(effort, timed)]


def _latencies(effort: Effort, options: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with Edged(folder, others=[_big(folder)], **options) as edged:
            edged.put_live()
            with Load(edged.address, edged.call, RATE) as load:
                time.sleep(effort.steady_s)
                idle = time.monotonic()
                edged.drop(checkpoint(BIG, 1, folder / "big.pt"), "big")
                edged.update_of("big.pt", "CALIBRATED")
                begin = time.monotonic()
                edged.stays("big.pt", "CALIBRATED", effort.quantizing_s)  # later stages do not quantize
                end = time.monotonic()
    return {
        "failed": sum(answer.failed for answer in load.answers),
        "idle": figures([answer for answer in load.answers if answer.done < idle]),
        "quantizing": figures(between(load.answers, begin, end)),
        "seconds": round(end - begin, 1),
    }


def _durations(effort: Effort, variants: dict[str, dict[str, Any]]) -> Rows:
    """Measure how long a quantization takes with and without requests, each variant in turn."""
    measured: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for _ in range(effort.durations):
        for name, options in variants.items():
            for rate in (0.0, RATE):
                measured.setdefault((name, rate), []).append(_duration(effort, options, rate))
    rows = []
    for (name, rate), runs in measured.items():
        medians = {key: round(statistics.median(run[key] for run in runs), 1) for key in ("took_s", "held_back_s")}
        p99 = [run["latency"]["p99"] for run in runs if run["latency"] is not None]
        worst = statistics.median(p99) if p99 else None
        rows.append({"variant": name, "rate": rate, "runs": len(runs), **medians, "p99": worst})
    return rows


def _duration(effort: Effort, options: dict[str, Any], rate: float) -> dict[str, Any]:
    """Quantize once, and return the seconds of all the worker's stages with the latencies meanwhile."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        big = _big(folder, images=effort.duration_images)
        edged = running.enter_context(Edged(folder, others=[big], **options))
        edged.put_live()
        load = running.enter_context(Load(edged.address, edged.call, rate)) if rate else None
        time.sleep(1)
        begin = time.monotonic()
        edged.drop(checkpoint(BIG, 1, folder / "big.pt"), "big")
        update = edged.update_of("big.pt", "COMMITTED")
        report = edged.get(f"/edged/v1/updates/{update['id']}/report.json")
        latency = None if load is None else figures(between(load.answers, begin, time.monotonic()))
    return {
        "took_s": sum(update["stages"][stage] for stage in WORKER_STAGES),
        "held_back_s": report["course"].get("held_back_s", 0.0),
        "latency": latency,
    }


def _big(folder: Path, **calibration: Any) -> dict[str, Any]:
    """Return the configuration of a large model of random weights, which neither a reading nor a gate can judge."""
    return {
        "name": "big",
        "calibration": {"dir": str(folder / "digits"), **calibration},
        "probation_s": 0,
        "input": {"size": BIG_SIDE, "resize": BIG_SIDE},
        "stride_in": "3x3",
        "gates": {"min_agreement": 0},
    }
