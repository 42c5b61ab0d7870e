"""Measure one method on one checkpoint: accuracy, seconds, ratio to a forward pass, and memory added.

Runs in a process of its own, so that the peak of memory is that of one method; imports torch.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edged.calibration.dataset import ImageCache
from edged.calibration.places import EVALUATE
from edged.comparators.cat import require_classifier, with_transformed_logits
from edged.comparators.inputs import Images
from edged.comparators.method import Options
from edged.comparators.network import COMPARATORS, quantize_with
from edged.comparators.peers.peer import Peer, open_peer, versions_of
from edged.compress import compress
from edged.device import device_of, moved, synchronize
from edged.evaluation.classification import predict
from edged.evaluation.gates import Gates
from edged.memory import (
    device_peak_bytes,
    give_back_free_memory,
    memory_errors_of,
    present_bytes,
)
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.scoring import Scorable, score
from edged.pipeline.soundness import sound_network
from edged.progress import ProgressListener
from edged.spec import QuantSpec, recipe
from edged.version import __version__
from service.comparison.job import CAT, FULL_PRECISION, PEERS, REFERENCE, Measurement
from service.worker.pipeline import decode_images, set_up_torch

BATCH, BATCH_PIXELS = 64, 1_000_000  # most images, and most pixels of them, in a batch
PASSES, SHORT_S = 3, 10.0
_SCORES = ("top1", "top5", "map50", "map50_95", "images", "sample")
_CLEAR_REFS = Path("/proc/self/clear_refs")
Quantize = Callable[[], nn.Module]


@dataclass(frozen=True)
class _Time:
    """Seconds on the clock, and seconds that all threads computed, which other work on the machine hardly changes."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class _Cost:
    """What it took to quantize.

    Attributes:
        model: The quantized network.
        took: Time of quantizing.
        forward: Time of a plain forward pass over the calibration images, right before.
        added_bytes: Peak memory less that before; of the GPU's tensors if it computes.
    """

    model: nn.Module
    took: _Time
    forward: _Time
    added_bytes: int


def measure(job: Measurement, listener: ProgressListener) -> dict[str, Any]:
    """Quantize once and measure the result.

    Args:
        job: What to measure.
        listener: Receives the stages and their progress.

    Returns:
        The row, in plain JSON types: "method", "bits", "activation_bits", "versions" (of a peer's packages),
        "iterations", "seconds", "passes", "cpu_seconds", "cpu_passes", "forward_seconds", "added_bytes", and "score"
        with what `edged.pipeline.scoring.score` returns. "machine" and "identity" say what was measured where: rows
        can be compared if both are the same.

    Raises:
        EdgedError: The checkpoint or the images cannot be used, or the method failed.
    """
    device = set_up_torch(job.threads, "cpu" if job.method in PEERS else job.device)
    network = load_checkpoint(job.checkpoint, job.arch, input_settings=job.input, choice=job.choice)
    calibration = decode_images(job.calibration, job.cache, network.input, job.images, listener)
    test = decode_images(job.data, job.cache, network.input, None, listener, EVALUATE)
    network = sound_network(network, calibration, Gates.none(), device)
    # Convolutions of a CPU run faster on this layout, in every method.
    model = network.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(job.seed)  # of methods without a generator of their own
    with listener.stage("import"):
        peer = open_peer(job.method, job.bits, batch_size(calibration), job.iterations) if job.method in PEERS else None
    quantize, iterations = _method(job, peer, network, model, calibration, listener)
    with listener.stage("quantize"), memory_errors_of(device):
        cost = _cost(quantize, model, calibration, device)
    scorable = Scorable(cost.model, network.architecture, network.input)
    scores = score(scorable, test, job.data, listener, with_sample=True)
    return {
        "method": job.method,
        "bits": job.bits,
        "activation_bits": None if peer is None else peer.activation_bits,
        "versions": {} if peer is None else versions_of(peer),
        "iterations": iterations,
        "seconds": round(cost.took.wall, 3),
        "forward_seconds": round(cost.forward.wall, 3),
        "passes": round(cost.took.wall / cost.forward.wall, 3),
        "cpu_seconds": round(cost.took.cpu, 3),
        "cpu_passes": round(cost.took.cpu / cost.forward.cpu, 3),
        "added_bytes": cost.added_bytes,
        "score": {key: scores[key] for key in _SCORES if key in scores},
        "machine": _machine(device),
        "identity": {
            "checkpoint": network.source.sha256,
            "architecture": network.architecture.name,
            "calibration": calibration.digest,
            "calibration_images": len(calibration.calibration),
            "comparison_key": scores["comparison_key"],
            "input": network.input.to_dict(),
            "seed": job.seed,
            "edged": __version__,
        },
    }


def _method(
    job: Measurement,
    peer: Peer | None,
    network: LoadedNetwork,
    model: nn.Module,
    cache: ImageCache,
    listener: ProgressListener,
) -> tuple[Quantize, int]:
    """Return the function that quantizes, and its optimization steps of a layer or block; 0 if it has none."""
    if job.method == FULL_PRECISION:
        return lambda: model, 0
    if peer is not None:
        return partial(peer.quantize, model, network.architecture, cache), peer.iterations
    if job.method in COMPARATORS:
        published = COMPARATORS[job.method].iterations
        iterations = published if job.iterations is None else min(job.iterations, published)
        options = Options(job.bits, iterations=iterations, seed=job.seed)
        return partial(_compared, job.method, model, cache, options, listener), iterations
    base = REFERENCE if job.method == CAT else job.method
    spec = recipe(base, **{"bits": job.bits, "seed": job.seed, **job.settings})
    if job.method == CAT:
        require_classifier(model)
        return lambda: _transformed(model, cache, spec, listener), 0
    return lambda: compress(model, cache, spec, listener=listener).model, 0


def _compared(
    method: str, model: nn.Module, cache: ImageCache, options: Options, listener: ProgressListener
) -> nn.Module:
    return quantize_with(method, model, _images(model, cache), options, listener, cache.directory).model


def _transformed(model: nn.Module, cache: ImageCache, spec: QuantSpec, listener: ProgressListener) -> nn.Module:
    quantized = compress(model, cache, spec, listener=listener).model
    return with_transformed_logits(quantized, model, _images(model, cache), spec.seed)


def _images(model: nn.Module, cache: ImageCache) -> Images:
    device = device_of(model)
    return lambda: (moved(batch, device) for batch in cache.batches(cache.calibration, batch_size(cache)))


def batch_size(cache: ImageCache) -> int:
    """Return how many images a forward pass computes at a time, so that its outputs take little memory."""
    return max(1, min(BATCH, BATCH_PIXELS // cache.input.size**2))


def _cost(quantize: Quantize, model: nn.Module, cache: ImageCache, device: torch.device) -> _Cost:
    # The first pass chooses kernels and starts threads.
    predict(model, cache, cache.calibration[: batch_size(cache)], batch_size(cache))
    forward = _forward_time(model, cache)
    before = _restart_peak(device)
    start = _now()
    quantized = quantize()
    synchronize(device)
    return _Cost(quantized, _since(start), forward, max(0, device_peak_bytes(device) - before))


def _forward_time(model: nn.Module, cache: ImageCache) -> _Time:
    """Return the time of a forward pass over the calibration images, the median of three where they are short."""
    times: list[_Time] = []
    while not times or (len(times) < PASSES and sum(t.wall for t in times) < SHORT_S):
        start = _now()
        predict(model, cache, cache.calibration, batch_size(cache))
        times.append(_since(start))
    return _Time(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))


def _now() -> _Time:
    return _Time(time.perf_counter(), time.process_time())


def _since(start: _Time) -> _Time:
    return _Time(time.perf_counter() - start.wall, time.process_time() - start.cpu)


def _restart_peak(device: torch.device) -> int:
    """Let the peak of memory start at what is in use now, and return that in bytes."""
    gc.collect()
    give_back_free_memory()  # memory that is free but resident would hide later allocations
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _CLEAR_REFS.write_text("5")
    return present_bytes(device)


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Return the processor's name as the kernel has it, or its kind if it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
