"""Run one job from checkpoint to artifact: the library's steps, with stage times, gates and sample predictions.

Runs in the worker and in `edged quantize`; imports torch.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from edged.calibration.dataset import MIN_IMAGES, ImageCache, build_cache
from edged.calibration.places import CALIBRATE
from edged.device import CPU, choose_device
from edged.engine.memory_plan import Resources, check_memory
from edged.evaluation.gates import check_gates
from edged.execution.tensorrt_engine import BuildLimits
from edged.memory import memory_errors_of
from edged.models.checkpoint import MAX_FILE_BYTES
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.candidates import settled_spec, within_memory
from edged.pipeline.choosing import Judging, Served, Serving, choose_or_repeat
from edged.pipeline.engine import Building
from edged.pipeline.evaluation import Labels, held_out_labels, require_labels
from edged.pipeline.mixed_precision import Compressor, HeldOut, gates_with
from edged.pipeline.quantize import Provenance, QuantizationResult, write_quantized
from edged.pipeline.soundness import sound_network
from edged.pipeline.timing import Measuring, undisturbed
from edged.progress import ProgressListener
from edged.spec import InputSpec, QuantSpec
from service.worker.fit import check_fit, check_network
from service.worker.job import PREDICTIONS, Job
from service.worker.predictions import sample_predictions
from service.worker.rejected import kept_if_rejected
from service.worker.timing import TimingListener


def run_job(job: Job, listener: ProgressListener, measuring: Measuring = undisturbed) -> QuantizationResult:
    """Quantize one checkpoint into an artifact folder.

    Args:
        job: The job.
        listener: Receives the stages, their progress and the memory plan.
        measuring: Context in which engines are timed.

    Returns:
        The artifact folder and its report.

    Raises:
        EdgedError: The job cannot be done; nothing is left in `job.out`, except for what `job.keep_rejected` asks for.
    """
    started_at = _now()
    spec = settled_spec(job.spec, job.runtime)
    job = dataclasses.replace(job, spec=spec, gates=gates_with(job.gates, spec))
    device = set_up_torch(job.threads, job.device)
    timer = TimingListener(listener, job.memory_limit, device)
    network = load_checkpoint(
        job.checkpoint,
        job.arch,
        input_settings=job.input,
        name=job.source_name,
        max_bytes=job.max_bytes or MAX_FILE_BYTES,
        choice=job.choice,
        check_network=partial(check_network, job),
        check=partial(check_fit, job),
        listener=timer,
    )
    with timer.stage("calibrate"):
        if job.memory_limit is not None and device == CPU:  # now, because decoding the images may take minutes
            job = dataclasses.replace(job, spec=_spec_within_memory(job, network))
        cache = decode_images(job.calibration_dir, job.cache_root, network.input, job.images, timer)
        labels = held_out_labels(cache, network.architecture)
        require_labels(job.gates, labels, cache, network.architecture, job.calibration_dir)
        network = sound_network(network, cache, job.gates, device)
    with timer.stage("quantize"), memory_errors_of(device):
        model = network.model.to(device)
        held_out = HeldOut(network.architecture, labels, job.detection)
        quantize = Compressor(model, cache, held_out, Resources(job.memory_limit), timer)
        compressed, spec = within_memory(quantize, job.spec)
        quantized = [compressed]
        del compressed  # the list has its only reference
    with timer.stage("evaluate"), memory_errors_of(device):
        judging = Judging(labels, job.detection, job.gates)
        serving = _serving(job, measuring)
        # Not the timer, which would end the choice at the memory limit: it tries what fits, see `choose_served`.
        served = choose_or_repeat(quantized, quantize, network, spec, judging, serving, listener)
        attachments = _sample_predictions(job, network, served, labels)
        with kept_if_rejected(job, network.source, served, attachments):
            check_gates(served.evaluation.totals, job.gates)
    seconds = {name: round(value, 3) for name, value in timer.seconds.items()}
    with timer.stage("write"):
        return write_quantized(
            job.out,
            network,
            served,
            spec,
            labels,
            job.detection,
            provenance=Provenance(job.name, started_at, _now()),
            extra_totals={"stage_seconds": seconds},
            attachments=attachments,
        )


def _spec_within_memory(job: Job, network: LoadedNetwork) -> QuantSpec:
    """Return the job's spec if a plan with it fits the memory limit, or else with activations in float if that does."""

    def plan(spec: QuantSpec) -> None:
        resources = Resources(job.memory_limit)
        check_memory(network.model, network.input, job.images or MIN_IMAGES, spec, resources)

    return within_memory(plan, job.spec)[1]


def _serving(job: Job, measuring: Measuring) -> Serving:
    limits = BuildLimits(job.memory_limit, max_batch=job.serving_batch)
    return Serving(
        job.runtime,
        job.serving_threads,
        job.memory_limit,
        job.serving_device,
        time.perf_counter,
        Building(job.engine_folder, limits),
        measuring,
    )


def set_up_torch(threads: int | None, device: str) -> torch.device:
    """Set torch's number of threads and return the device to compute on.

    Args:
        threads: Threads for computing; None leaves torch's own choice, one per core.
        device: "auto", "cpu" or "cuda".

    Raises:
        DeviceError: "cuda" is asked for, and torch finds no GPU.
        UsageError: There is no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return choose_device(device)


def decode_images(
    folder: Path,
    cache_root: Path,
    spec: InputSpec,
    images: int | None,
    listener: ProgressListener,
    split: str = CALIBRATE,
) -> ImageCache:
    """Return the decoded images of `folder`; reading and decoding run on all cores, because Pillow releases the GIL.

    Args:
        folder: The images.
        cache_root: Folder where decoded images are kept.
        spec: Preparation of the images.
        images: Most images to use, None for all.
        listener: Receives the number of images that are done.
        split: Use of the images, which chooses between those of a data.yaml.

    Raises:
        CalibrationError: The folder is missing or holds too few usable images.
        StateError: The cache cannot be written.
    """
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as pool:
        return build_cache(folder, cache_root, spec, limit=images, map_fn=pool.map, listener=listener, split=split)


def _sample_predictions(job: Job, network: LoadedNetwork, served: Served, labels: Labels) -> dict[str, bytes]:
    """Return the file of sample predictions by name; no file if the job asks for none."""
    if not job.report_images:
        return {}
    boxes = served.evaluation.boxes
    names = job.class_names or network.class_names
    sampled = sample_predictions(served.network, network.architecture, labels, boxes, job.report_images, names)
    return {PREDICTIONS: json.dumps(sampled).encode()}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
