"""Choice of the engine and the numbers that serve a quantized network, by measurement on this device.

Each candidate is timed on one image, and compared with full precision on the held-out images. The fastest one that
passes the gates serves.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from edged.compress import Compressed
from edged.device import CPU, device_of
from edged.errors import EdgedError, GateError
from edged.evaluation.gates import Gates, check_gates
from edged.heap import ENGINE_LOADING
from edged.memory import give_back_free_memory, resident_bytes
from edged.models.loading import LoadedNetwork
from edged.models.registry import Architecture
from edged.pipeline.candidates import Candidate, candidates_of
from edged.pipeline.engine import Building, Engines, executor_of, start_engine
from edged.pipeline.evaluation import Evaluation, Labels, evaluate_each
from edged.pipeline.keeping import keep_layers_float
from edged.pipeline.timing import Clock, Measuring, median_seconds, undisturbed
from edged.progress import ProgressListener, SilentListener
from edged.spec import ACTIVATION_BITS, AUTO, FLOAT, INTEGER, DetectionSpec, QuantSpec

log = logging.getLogger(__name__)

SMALL_BYTES = 64 << 20  # less than a plan's accuracy
# Memory that an engine may take for itself in this process: OpenVINO takes 50 MiB for a tiny model, more for others.
LIBRARY_BYTES = {"openvino": 96 << 20}
TIE = 1.05  # times whose ratio is below count as equal


@dataclass(frozen=True)
class Serving:
    """How the network is going to be served.

    Attributes:
        runtime: Engine, one of `edged.spec.RUNTIMES`; "auto" for the fastest.
        threads: Threads of the engine; None for as many as torch has.
        memory_limit: Bytes of resident memory that this process may take; None for what the quantization was planned to
            take.
        device: Device that torch computes on in service: "cpu", "cuda", or "auto" for a GPU if torch finds one.
        clock: Clock that candidates are timed with; None to take the first one in order that passes the gates.
        building: How engines of TensorRT are built.
        measuring: Returns the context in which candidates are timed.
    """

    runtime: str = "auto"
    threads: int | None = None
    memory_limit: int | None = None
    device: str = "cpu"
    clock: Clock | None = None
    building: Building = field(default_factory=Building)
    measuring: Measuring = undisturbed


@dataclass(frozen=True)
class Judging:
    """What a candidate is compared by.

    Attributes:
        labels: Labels of the held-out images.
        detection: Rules for the predictions of a detector that become boxes; not used for a classifier.
        gates: What it must reach.
    """

    labels: Labels
    detection: DetectionSpec
    gates: Gates


@dataclass(frozen=True)
class Served:
    """The chosen candidate.

    Attributes:
        network: The quantized network in its engine.
        evaluation: Its comparison with full precision.
        engine: Name of the engine.
        candidates: All candidates, as they stand in the report.
    """

    network: Compressed
    evaluation: Evaluation
    engine: str
    candidates: list[dict[str, Any]]

    @property
    def serve(self) -> dict[str, str]:
        """Entry of the manifest that says how the network was judged, and is served."""
        return {"engine": self.engine, "precision": self.network.precision}

    @property
    def passes(self) -> bool:
        """Whether the chosen candidate passes the gates."""
        return any(candidate["chosen"] for candidate in self.candidates)


def choose_or_repeat(
    quantized: list[Compressed],
    quantize: Callable[[QuantSpec], Compressed],
    network: LoadedNetwork,
    spec: QuantSpec,
    judging: Judging,
    serving: Serving,
    listener: ProgressListener | None = None,
) -> Served:
    """Choose as `choose_served` does; where nothing passes the gates, try once more with activations never quantized.

    Codes compensate for the rounding of activations. Where that rounding does harm, they do not suit floats either.

    Args:
        quantized: The quantized network as its only entry. It is removed, so that its memory is free for another one.
        quantize: Quantizes the network by a spec.
        network: The network in full precision.
        spec: How it was quantized. Only with activation_bits AUTO there is another try.
        judging: What the candidates are compared by.
        serving: How the network is going to be served.
        listener: Receives the stages of `choose_served`.

    Returns:
        What `choose_served` returns, with the candidates of both tries.

    Raises:
        EdgedError: What `choose_served` raises.
    """
    compressed = quantized.pop()
    served = choose_served(compressed, network, spec, judging, serving, listener)
    if served.passes or spec.activation_bits != AUTO or compressed.activations is None:
        return served
    before = served.candidates
    del compressed, served
    log.warning("no candidate passes the gates with activations quantized; quantizing once more without")
    spec = dataclasses.replace(spec, activation_bits=None)
    served = choose_served(quantize(spec), network, spec, judging, serving, listener)
    return dataclasses.replace(served, candidates=[*before, *served.candidates])


def choose_served(
    compressed: Compressed,
    network: LoadedNetwork,
    spec: QuantSpec,
    judging: Judging,
    serving: Serving,
    listener: ProgressListener | None = None,
) -> Served:
    """Choose the engine and the numbers that serve a quantized network.

    Args:
        compressed: The quantized network.
        network: The network in full precision.
        spec: How it was quantized.
        judging: What the candidates are compared by.
        serving: How the network is going to be served.
        listener: Receives the stages "engines", which counts the candidates that are loaded, "time" and "judge"; where
            layers are kept in float "rank", which counts images and layers, and "keep", which counts networks.

    Returns:
        The fastest candidate that passes the gates; if none does, the one that comes closest to full precision. Where
        integers fail them, a candidate with layers in float is one, too.

    Raises:
        UnavailableError: The engine that is asked for is not installed.
        ArtifactError, ArchitectureError: No engine can compute the network.
        GateError: The outputs are not finite in any engine.
    """
    watcher: ProgressListener = listener or SilentListener()
    with _torch_threads(serving.threads) as threads:
        candidates = candidates_of(compressed, spec, serving.runtime)
        engines = Engines(compressed, network, threads, serving.device, serving.building)
        room = _room(compressed, spec, serving)
        with watcher.stage("engines"):
            candidates = _loaded(candidates, engines, room, watcher)
            ready = _ready(candidates, engines)
        with watcher.stage("time"):
            _time(ready, engines, serving)
        ranked = _ranked(ready)
        with watcher.stage("judge"):
            chosen = _judge(ranked, network.architecture, judging, watcher)
        failed = next((each for each in ranked if each.precision == INTEGER and each.fails_gates), None)
        if failed is not None and (not chosen.passes or _is_slower(chosen, failed)):
            kept = _with_layers_in_float(compressed, failed, network, judging, engines, room, watcher)
            if kept is not None:
                candidates.append(kept)
                chosen = _faster(kept, chosen, engines, serving)
        assert chosen.network is not None  # noqa: S101 - it was evaluated
        assert chosen.evaluation is not None  # noqa: S101
        listed = [candidate.to_dict(chosen=candidate is chosen and candidate.passes) for candidate in candidates]
        return Served(chosen.network, chosen.evaluation, chosen.engine, listed)


def _is_slower(candidate: Candidate, other: Candidate) -> bool:
    return candidate.ms is not None and other.ms is not None and candidate.ms > other.ms


def _with_layers_in_float(
    compressed: Compressed,
    failed: Candidate,
    network: LoadedNetwork,
    judging: Judging,
    engines: Engines,
    lack: Callable[[Candidate], str | None],
    listener: ProgressListener,
) -> Candidate | None:
    """Return the candidate that keeps as few layers in float as the gates need; None if none passes them.

    Args:
        compressed: The quantized network.
        failed: The candidate without such layers, in the same engine.
        network: The network in full precision.
        judging: What the candidates are compared by.
        engines: Engines with the network.
        lack: Says why there is no room for a candidate.
        listener: Receives the stages of `keep_layers_float`.
    """
    log.info("%s: %s; keeping layers in float", failed.engine, failed.refused)
    passing: list[Candidate] = []

    def holds(tried: Compressed) -> bool:
        in_float = () if tried.activations is None else tried.activations.in_float
        candidate = Candidate(failed.engine, INTEGER, in_float=in_float, silu=failed.silu)
        _load(candidate, engines.of(tried), lack)
        if candidate.network is None:
            return False
        _compare([candidate], network.architecture, judging)
        passing[:] = [candidate] if candidate.passes else passing
        return candidate.passes

    return passing[0] if keep_layers_float(compressed, holds, listener) is not None else None


def _faster(kept: Candidate, chosen: Candidate, engines: Engines, serving: Serving) -> Candidate:
    """Return the faster one of two candidates of which the first passes the gates, and measure the time of that one."""
    _time([kept, chosen] if chosen.passes else [kept], engines, serving)
    return kept if not chosen.passes or _is_slower(chosen, kept) else chosen


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[int]:
    """Have torch compute with as many threads as the engine will have, inside the block."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _room(compressed: Compressed, spec: QuantSpec, serving: Serving) -> Callable[[Candidate], str | None]:
    """Return a function that says why there is no room for a candidate's engine; None if there is.

    ONNX Runtime, or the engine that is asked for, may exceed a limit by as much as a plan is inaccurate. Others are
    there to be compared only, so they must fit.
    """
    weights = sum(weight.codes.numel() for weight in compressed.quantized.values())
    memory_limit = serving.memory_limit
    limited = memory_limit is not None
    if memory_limit is None and device_of(compressed.full) == CPU:  # a plan for a GPU is of the GPU's memory
        memory_limit = compressed.plan.peak_bytes

    def lack(candidate: Candidate) -> str | None:
        extra = limited and serving.runtime == "auto" and candidate.engine != "onnxruntime"
        insists = spec.activation_bits == ACTIVATION_BITS  # nothing else can take its place
        if candidate.engine == "torch" or (insists and not extra):
            return None
        needed = ENGINE_LOADING * weights * (4 if candidate.precision == FLOAT else 1)
        needed += LIBRARY_BYTES.get(candidate.engine, 0) if limited else 0  # a plan does not know them
        present = resident_bytes()
        if memory_limit is None or present + needed <= memory_limit or (needed < SMALL_BYTES and not extra):
            return None
        return (
            f"no room: loading it takes {needed >> 20} MiB next to the {present >> 20} MiB in use, and"
            f" {memory_limit >> 20} MiB are allowed"
        )

    return lack


def _loaded(
    candidates: Sequence[Candidate],
    engines: Engines,
    lack: Callable[[Candidate], str | None],
    listener: ProgressListener,
) -> list[Candidate]:
    """Load candidates into their engines; return those that were tried.

    All are loaded at once, because they are timed in turn: measured one after the other, they would differ by what else
    the device did meanwhile. `_room` bounds the memory that they take together, with a limit and without one.
    """
    tried = []
    for last_resort in (False, True):
        for candidate in candidates:
            if candidate.last_resort is last_resort:
                _load(candidate, engines, lack)
                tried.append(candidate)
                listener.progress(len(tried), len(candidates))
        if any(candidate.network is not None for candidate in tried):
            break
    return tried


def _load(candidate: Candidate, engines: Engines, lack: Callable[[Candidate], str | None]) -> None:
    """Load a candidate into its engine and compute an image twice, or record why that is not possible."""
    if (reason := lack(candidate)) is not None:
        candidate.lacks_room = True
        candidate.refuse(reason)
        return
    give_back_free_memory()
    try:
        start_engine(candidate.engine)
        engines.write(candidate.engine, candidate.precision, candidate.silu)
        give_back_free_memory()
        before = resident_bytes()
        candidate.network = engines.load(candidate.engine, candidate.precision, candidate.silu)
        for _ in range(2):
            executor_of(candidate.network).run(engines.image)
    except Exception as error:  # engines raise classes of their own, which share no base
        candidate.refuse(" ".join(str(error).split())[:300] or type(error).__name__, error)
        log.warning("%s cannot serve in %s: %s", candidate.engine, candidate.precision, candidate.refused)
        return
    give_back_free_memory()
    candidate.memory_bytes = max(0, resident_bytes() - before) + engines.shared_bytes(candidate.engine)


def _ready(candidates: Sequence[Candidate], engines: Engines) -> list[Candidate]:
    """Return the candidates that were loaded.

    Where only memory lacks for an engine in float, torch stands for it in this process, because its outputs differ by
    rounding only. It must not serve in its place, because it takes more memory.

    Raises:
        EdgedError: There is none, for the reason of the first one.
    """
    ready = [candidate for candidate in candidates if candidate.network is not None]
    crowded = next((each for each in candidates if each.lacks_room and each.precision == FLOAT), None)
    if crowded is not None and not any(each.precision == FLOAT and each.engine != "torch" for each in ready):
        for candidate in ready:
            if candidate.engine == "torch":
                candidate.refuse(f"it takes more memory than {crowded.engine}, for which there is no room to measure")
        crowded.refused, crowded.network = None, engines.without(FLOAT)
        ready = [*(candidate for candidate in ready if candidate.network is not None), crowded]
    if ready:
        return ready
    error = candidates[0].error
    raise error if isinstance(error, EdgedError) else EdgedError(f"no engine computes the network: {error}") from error


def _time(ready: Sequence[Candidate], engines: Engines, serving: Serving) -> None:
    """Measure the time of one image in each candidate, if there is a clock."""
    if serving.clock is None:
        return
    timed = [(each, executor_of(each.network)) for each in ready if each.network is not None and not each.lacks_room]
    runs = [partial(executor.run, engines.image) for _, executor in timed]
    with serving.measuring() as rest:
        seconds = median_seconds(runs, serving.clock, rest=rest)
    for (candidate, _), taken in zip(timed, seconds, strict=True):
        candidate.ms = 1000 * taken


def _ranked(ready: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates with the fastest first and those without a time last; about equal ones stay in their order."""
    known = [each.ms for each in ready if each.ms is not None]

    def rank(candidate: Candidate) -> float:
        if candidate.ms is None:
            return math.inf
        return math.floor(math.log(candidate.ms / min(known), TIE))

    return sorted(ready, key=rank)


def _judge(
    ranked: Sequence[Candidate], architecture: Architecture, judging: Judging, listener: ProgressListener
) -> Candidate:
    """Return the first candidate that passes the gates.

    The first one of each precision is compared with full precision. A slower one of the same precision computes the
    same outputs up to rounding, so it is compared only where a faster one fails.

    Raises:
        GateError: No candidate's outputs are finite.
    """
    precisions: dict[str, Candidate] = {}
    for candidate in ranked:
        precisions.setdefault(candidate.precision, candidate)
    waiting = [candidate for candidate in ranked if candidate in precisions.values()]
    while waiting:
        _compare(waiting, architecture, judging)
        listener.progress(sum(each.evaluation is not None for each in ranked), len(ranked))
        better = list(itertools.takewhile(lambda each: not each.passes, ranked))
        waiting = [each for each in better if each.evaluation is None and each.refused is None][:1]
    compared = [candidate for candidate in ranked if candidate.evaluation is not None]
    if not compared:
        raise ranked[0].error or GateError("no engine computes the network")
    closest = max(compared, key=lambda each: each.evaluation.totals["agreement"] if each.evaluation else 0.0)
    return next((each for each in ranked if each.passes), closest)


def _compare(candidates: Sequence[Candidate], architecture: Architecture, judging: Judging) -> None:
    """Compare candidates with full precision, and refuse those that fail a gate."""
    networks = [each.network for each in candidates if each.network is not None]
    found = evaluate_each(networks, architecture, judging.labels, judging.detection)
    for candidate, evaluation in zip(candidates, found, strict=True):
        if isinstance(evaluation, GateError):
            candidate.refuse(str(evaluation), evaluation)
            continue
        candidate.evaluation = evaluation
        try:
            check_gates(evaluation.totals, judging.gates)
        except GateError as error:
            candidate.refused = str(error)
