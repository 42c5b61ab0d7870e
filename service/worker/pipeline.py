"""The work on one checkpoint, a function a stage. Runs in the worker and in `edged quantize` alike; imports torch."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edged.artifacts.manifest import Manifest
from edged.artifacts.warmup import record
from edged.artifacts.writer import write_artifact
from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import Compressed, compress
from edged.device import CPU, choose_device, device_name
from edged.engine.memory_plan import Resources
from edged.errors import CalibrationError, MemoryLimitError, RejectedError
from edged.memory import device_peak_bytes, peak_bytes
from edged.models.checkpoint import MAX_FILE_BYTES, Checkpoint, read_checkpoint
from edged.models.layers import own_memory
from edged.models.registry import Architecture, load_model, recognize
from edged.progress import ProgressListener
from edged.spec import InputSpec
from service.worker.evaluation import Evaluation, Labels, check_gates, evaluate, held_out_labels
from service.worker.job import PREDICTIONS, Job
from service.worker.predictions import sample_predictions
from service.worker.refused import kept_if_refused
from service.worker.timing import TimingListener


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as a network.

    Attributes:
        model: Full precision, eval mode.
        architecture: What it is.
        input: How its images are prepared.
    """

    model: nn.Module
    architecture: Architecture
    input: InputSpec


def run_job(job: Job, listener: ProgressListener) -> dict[str, Any]:
    """Quantize one checkpoint into an artifact folder.

    Returns:
        {"out": folder, "report": the contents of report.json}.

    Raises:
        EdgedError: Any of them; nothing is left in `job.out`.
    """
    started_at = _now()
    device = set_up_torch(job.threads, job.device)
    watch = TimingListener(listener, job.memory_limit, device)
    with watch.stage("verify"), _named(job):
        checkpoint = read_checkpoint(job.checkpoint, max_bytes=job.max_bytes or MAX_FILE_BYTES)
    with watch.stage("load"), _named(job):
        loaded = load(checkpoint, job.arch, job.input)
        # The file stays mapped, and its pages count as memory in use, for as long as a tensor refers to it.
        checkpoint = dataclasses.replace(checkpoint, state={})
    with watch.stage("calibrate"):
        cache = calibrate(job.calibration_dir, job.cache_root, loaded.input, job.images, watch)
        labels = held_out_labels(cache, loaded.architecture, job.calibration_dir)
        if (gate := job.gates.need_labels) is not None and not labels:
            raise CalibrationError(f"gates.{gate} needs labels, and {_without_labels(job, loaded.architecture, cache)}")
    with watch.stage("quantize"), _memory_of(device):
        model = loaded.model.to(device)
        compressed = compress(model, cache, job.spec, resources=Resources(job.memory_limit), listener=watch)
    with watch.stage("evaluate"), _memory_of(device):
        evaluation = evaluate(compressed, cache, loaded.architecture, labels, job.detection)
        shown = _predictions(job, compressed, cache, loaded.architecture, labels, evaluation)
        with kept_if_refused(job, compressed, evaluation.totals, shown):
            check_gates(evaluation.totals, job.gates)
    totals = evaluation.totals | {
        "bits": job.spec.bits,
        "checkpoint_bytes": checkpoint.file_bytes,
        "network_bytes": sum(value.nbytes for value in compressed.model.state_dict().values()),
        "bn_reestimated": compressed.bn_reestimated,
        "stage_seconds": {name: round(seconds, 3) for name, seconds in watch.seconds.items()},
        "peak_memory_bytes": peak_bytes(),
        "device": device_name(device),
        "peak_device_memory_bytes": device_peak_bytes(device),
    }
    report = {
        "totals": totals,
        "layers": [layer.to_dict() for layer in compressed.layers],
        "plan": compressed.plan.to_dict(),
        "skipped_images": [vars(entry) for entry in cache.skipped],
        # What live requests are compared with, see service.inference.observation.
        "calibration_colours": cache.color_histogram().round(6).tolist(),
    }
    manifest = _manifest(job, checkpoint, loaded, cache, bool(labels), started_at)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with watch.stage("write"):
        # Of the network that was evaluated, not of the file: what packing or loading got wrong must show, too.
        warmup = record(compressed.model.to(CPU), cache)
        report = write_artifact(
            job.out,
            quantized=compressed.quantized,
            rest=compressed.rest,
            manifest=manifest,
            report=report,
            warmup=warmup,
            attachments=shown,
        )
    return {"out": str(job.out), "report": report}


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """Errors about the file name it as the user knows it: under claimed/ it has another name."""
    try:
        yield
    except RejectedError as error:
        told = str(error).removeprefix(f"{job.checkpoint.name}: ")
        raise type(error)(f"{job.source_name or job.checkpoint.name}: {told}") from error


@contextmanager
def _memory_of(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:  # of a CUDA device; the CPU's is another
        raise MemoryLimitError(
            f"{device_name(device)} ran out of memory; give a lower memory limit than the"
            f" {device_peak_bytes(device) >> 20} MiB that were in use, free its memory or choose device cpu"
        ) from error


def _predictions(
    job: Job,
    compressed: Compressed,
    cache: ImageCache,
    architecture: Architecture,
    labels: Labels,
    evaluation: Evaluation,
) -> dict[str, bytes]:
    """The file of sample predictions, if one is wanted."""
    if not job.report_images:
        return {}
    sampled = sample_predictions(compressed, cache, architecture, labels, evaluation.boxes, job.report_images)
    return {PREDICTIONS: json.dumps(sampled).encode()}


def set_up_torch(threads: int | None, device: str) -> torch.device:
    """Set the number of threads and choose the device, see `choose_device` for its errors."""
    if threads is not None:
        torch.set_num_threads(threads)
    return choose_device(device)


def load(checkpoint: Checkpoint, arch: str | None, overrides: Mapping[str, Any]) -> Loaded:
    """The network of a checkpoint.

    Raises:
        ArchitectureError: The tensors fit none, or not `arch`.
        UsageError: An override cannot be.
    """
    architecture = recognize(checkpoint.state, arch, checkpoint.plan, checkpoint.problem)
    spec = architecture.default_input.override(overrides)
    architecture.check_input(spec)
    return Loaded(own_memory(load_model(checkpoint.state, architecture)), architecture, spec)


def calibrate(
    folder: Path, cache_root: Path, spec: InputSpec, images: int | None, listener: ProgressListener
) -> ImageCache:
    """The decoded images of `folder`; decoding runs on all cores, because Pillow releases the GIL."""
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as pool:
        return build_cache(folder, cache_root, spec, limit=images, map_fn=pool.map, listener=listener)


def _without_labels(job: Job, architecture: Architecture, cache: ImageCache) -> str:
    if architecture.task == "detection":
        return (
            f"{job.calibration_dir} has none for the held-out images that fit the"
            f" {architecture.num_classes} classes of the detector; put YOLO label files there or drop the gate"
        )
    return (
        f"{job.calibration_dir} has {len(cache.classes)} class folders for"
        f" {architecture.num_classes} classes; sort the images into one folder a class or drop the gate"
    )


def _manifest(
    job: Job, checkpoint: Checkpoint, loaded: Loaded, cache: ImageCache, labelled: bool, started_at: str
) -> Manifest:
    architecture = loaded.architecture
    folder_labels = labelled and architecture.plan is None
    classes = cache.classes if folder_labels else None
    return Manifest(
        name=job.name,
        architecture=architecture.to_dict(),
        input=loaded.input.to_dict(),
        quantization=job.spec.to_dict(),
        source={
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.file_bytes,
            "name": job.source_name or job.checkpoint.name,
            "format": checkpoint.format,
        },
        calibration={
            "digest": cache.digest,
            "images": len(cache.calibration),
            "held_out": len(cache.held_out),
            "skipped": len(cache.skipped),
            "folder_labels": folder_labels,
        },
        classes=classes if architecture.plan is None else architecture.plan.names,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("edged", "torch", "torchvision", "numpy")},
        },
        started_at=started_at,
        finished_at=_now(),
        task=architecture.task,
        detection=None if architecture.plan is None else job.detection.to_dict(),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
