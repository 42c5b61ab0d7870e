"""Quantize a checkpoint file into an artifact folder with the help of a folder of images.

    load_checkpoint -> build_cache -> compress -> evaluate -> write_quantized

`quantize` runs the steps in order. A caller that needs something between them, as the daemon's worker does, calls the
steps itself.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edged.artifacts.manifest import Manifest
from edged.artifacts.warmup import record
from edged.artifacts.writer import require_absent, write_artifact
from edged.atomic import as_state_error
from edged.calibration.dataset import MapFn, build_cache
from edged.calibration.folder import passed_over
from edged.compress import Compressed
from edged.device import choose_device, device_name, device_of
from edged.engine.memory_plan import Resources
from edged.evaluation.gates import Gates, check_gates
from edged.memory import device_peak_bytes, memory_errors_of, peak_bytes
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.candidates import settled_spec, within_memory
from edged.pipeline.choosing import Judging, Served, Serving, choose_or_repeat
from edged.pipeline.engine import executor_of
from edged.pipeline.evaluation import Labels, held_out_labels, require_labels
from edged.pipeline.mixed_precision import Compressor, HeldOut, gates_with
from edged.pipeline.soundness import sound_network
from edged.pipeline.timing import Clock
from edged.progress import ProgressListener, SilentListener
from edged.spec import DetectionSpec, Levels, QuantSpec


@dataclass(frozen=True)
class QuantizationResult:
    """A quantized model that was written to disk.

    Attributes:
        artifact: The artifact folder; `edged.load_artifact` opens it.
        report: The contents of its report.json: "source", "totals", "layers", "plan", "skipped_images",
            "calibration_colours"; with bits auto also "chosen_bits".
    """

    artifact: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """The model name and times of a manifest.

    The library reads no clock, so a caller that wants times passes them.

    Attributes:
        model: Name of the model in the daemon's configuration; "" without a daemon.
        started_at: When the work began, ISO 8601 UTC; "" if unknown.
        finished_at: When the work was done, ISO 8601 UTC; "" if unknown.
    """

    model: str = ""
    started_at: str = ""
    finished_at: str = ""


def quantize(
    checkpoint: str | Path | LoadedNetwork,
    calibration: str | Path,
    out: str | Path,
    spec: QuantSpec | None = None,
    *,
    arch: str | None = None,
    images: int | None = None,
    cache_root: str | Path | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
    detection: DetectionSpec | None = None,
    gates: Gates | None = None,
    runtime: str = "auto",
    clock: Clock | None = None,
    map_fn: MapFn = map,
    listener: ProgressListener | None = None,
) -> QuantizationResult:
    """Quantize a checkpoint with the help of calibration images and write the result to a new artifact folder.

    Every convolution and linear layer is quantized to `spec.bits` bits per weight (FastOBQ, arXiv 2509.05576), or with
    bits "auto" to bits of its own, within `spec.size_limit` bytes or `spec.max_drop` points of accuracy. A tenth
    of the images, at least 8, is held out to compare the quantized model with full precision.

    Args:
        checkpoint: A checkpoint file, which may come from anywhere, or what `load_checkpoint` returned. A loaded
            network's numbers are not modified.
        calibration: Folder of at least 32 JPEG, PNG, WebP or BMP images, nested or not. One folder per class gives a
            classifier's labels, YOLO text files give a detector's.
        out: Artifact folder to make; must not exist. It appears only when all of it is on the disk.
        spec: How to quantize; None for QuantSpec().
        arch: Expected architecture of a checkpoint file; None accepts any.
        images: Most images to use, balanced over classes; None for all.
        cache_root: Folder where decoded images are kept for the next call; None to keep none.
        device: "cpu", "cuda", or "auto" for CUDA where there is a GPU.
        memory_limit: Bytes of resident memory to plan for, of a GPU's memory on CUDA; None for no limit. Changes speed,
            and results by rounding only.
        detection: Rules for the predictions of a detector that become boxes; None for DetectionSpec(). Not used for a
            classifier.
        gates: Gates that the result must pass on the held-out images to be written; None to write it in any case.
        runtime: Engine that is going to serve the model, one of `edged.spec.RUNTIMES`; "auto" for the fastest one here.
        clock: Clock to time the engines with, such as `time.perf_counter`; None to take the first one in order
            (integers before floats, torch last) that passes the gates.
        map_fn: `map`, or the `map` of an executor to read and decode images in parallel.
        listener: Receives the stages "verify", "load", "calibrate", "quantize", "evaluate" and "write", their progress
            and the memory plan.

    Returns:
        The artifact folder and its report.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, too large, or holds no finite state dict.
        ArchitectureError: The tensors fit no supported network, or not `arch`; or no reading of what they leave open
            is better than chance on labeled images.
        CalibrationError: The images cannot be used, or a gate needs labels that they lack.
        GateError: A gate is not passed, or the quantized model's output is not finite.
        MemoryLimitError: The work does not fit the memory limit or the GPU.
        DeviceError: CUDA is asked for, and torch finds no GPU.
        StateError: `out` exists or cannot be written.
    """
    calibration, out, spec = Path(calibration), Path(out), settled_spec(spec or QuantSpec(), runtime)
    detection, listener = detection or DetectionSpec(), listener or SilentListener()
    if spec.max_drop is not None:
        gates = gates_with(gates or Gates.none(), spec)
    require_absent(out)
    chosen = choose_device(device)
    network = (
        checkpoint if isinstance(checkpoint, LoadedNetwork) else load_checkpoint(checkpoint, arch, listener=listener)
    )
    kept = tempfile.TemporaryDirectory(prefix="edged-") if cache_root is None else nullcontext(str(cache_root))
    with kept as folder:
        with as_state_error(Path(folder)):
            Path(folder).mkdir(parents=True, exist_ok=True)
        with listener.stage("calibrate"):
            cache = build_cache(
                calibration, Path(folder), network.input, limit=images, map_fn=map_fn, listener=listener
            )
            labels = held_out_labels(cache, network.architecture)
            require_labels(gates or Gates.none(), labels, cache, network.architecture, calibration)
            network = sound_network(network, cache, gates or Gates.none(), chosen)
        with listener.stage("quantize"), memory_errors_of(chosen):
            model = network.model.to(chosen)
            held_out = HeldOut(network.architecture, labels, detection)
            compress_by = Compressor(model, cache, held_out, Resources(memory_limit), listener)
            compressed, spec = within_memory(compress_by, spec)
            quantized = [compressed]
            del compressed  # the list has its only reference
        with listener.stage("evaluate"), memory_errors_of(chosen):
            judging = Judging(labels, detection, gates or Gates.none())
            serving = Serving(runtime, memory_limit=memory_limit, clock=clock)
            served = choose_or_repeat(quantized, compress_by, network, spec, judging, serving, listener)
            if gates is not None:
                check_gates(served.evaluation.totals, gates)
        with listener.stage("write"):
            with as_state_error(out):
                out.parent.mkdir(parents=True, exist_ok=True)
            return write_quantized(out, network, served, spec, labels, detection)


def write_quantized(
    out: Path,
    network: LoadedNetwork,
    served: Served,
    spec: QuantSpec,
    labels: Labels,
    detection: DetectionSpec,
    *,
    provenance: Provenance | None = None,
    extra_totals: Mapping[str, Any] | None = None,
    attachments: Mapping[str, bytes] | None = None,
) -> QuantizationResult:
    """Write an evaluated model as an artifact folder. The folder appears only when all of it is on the disk.

    Args:
        out: The folder; must not exist. Its parent is made.
        network: The network in full precision.
        served: The quantized network in the engine that serves it, and its measurements on the held-out images.
        spec: How it was quantized.
        labels: Labels of the held-out images.
        detection: Rules for the predictions of a detector that become boxes.
        provenance: Model name and times of the manifest.
        extra_totals: Measured values that the caller adds to "totals" of the report.
        attachments: Contents of further files, by name; not read by the library.

    Raises:
        StateError: `out` exists, the folder around it does not, the disk is full or the folder cannot be written.
    """
    compressed = served.network
    report = _report(network, served, spec, labels, extra_totals or {})
    manifest = _manifest(network, served, spec, labels, detection, provenance or Provenance())
    # Recorded from the network that was evaluated, not from the file, so that errors of packing or loading show.
    warmup = record(executor_of(compressed), compressed.cache)
    written = write_artifact(
        out,
        quantized=compressed.quantized,
        rest=compressed.rest,
        manifest=manifest,
        report=report,
        warmup=warmup,
        onnx=compressed.onnx,
        attachments=attachments,
    )
    return QuantizationResult(out, written)


def _report(
    network: LoadedNetwork, served: Served, spec: QuantSpec, labels: Labels, extra_totals: Mapping[str, Any]
) -> dict[str, Any]:
    compressed = served.network
    device, cache = device_of(compressed.model), compressed.cache
    others = passed_over(cache.others)
    split = [f"from {cache.split} of the data.yaml"] if cache.split else []
    totals = served.evaluation.totals | {
        "bits": spec.bits,
        **_widths(compressed),
        "first_bits": compressed.layers[0].bits,
        "last_bits": compressed.layers[-1].bits,
        "small_bits": spec.bits_of_small_layers,
        "activation_bits": None if compressed.served_activations is None else compressed.served_activations.bits,
        "exact_kernels": getattr(executor_of(compressed), "exact", False),
        "serve": served.serve,
        "candidates": served.candidates,
        "checkpoint_bytes": network.source.bytes,
        "checkpoint": network.selection.to_dict(),
        "network_bytes": sum(value.nbytes for value in compressed.model.state_dict().values()),
        "bn_reestimated": compressed.bn_reestimated,
        **({"corrected_share": compressed.corrected_share} if spec.cluster_affine else {}),
        **({} if spec.levels is Levels.UNIFORM else {"levels": spec.levels.value}),
        "peak_memory_bytes": peak_bytes(),
        "device": device_name(device),
        "peak_device_memory_bytes": device_peak_bytes(device),
    }
    return {
        "source": network.source.to_dict(),
        "totals": {**totals, **extra_totals},
        "layers": [layer.to_dict() for layer in compressed.layers],
        **({} if compressed.chosen_bits is None else {"chosen_bits": dict(compressed.chosen_bits)}),
        "plan": compressed.plan.to_dict(),
        "skipped_images": [vars(entry) for entry in cache.skipped],
        "image_notes": [*split, *([others] if others else []), *labels.notes],
        # The reference distribution of live requests' images, see edged.calibration.color_histograms.
        "calibration_colours": cache.color_histogram().round(6).tolist(),
    }


def _widths(compressed: Compressed) -> dict[str, Any]:
    """Return the least, most and mean bits where each layer has its own."""
    chosen = compressed.chosen_bits
    return {} if chosen is None else {"layer_bits": {key: chosen[key] for key in ("least", "most", "mean")}}


def _manifest(
    network: LoadedNetwork,
    served: Served,
    spec: QuantSpec,
    labels: Labels,
    detection: DetectionSpec,
    provenance: Provenance,
) -> Manifest:
    compressed = served.network
    architecture, cache = network.architecture, compressed.cache
    folder_labels = labels.classes is not None
    classes = network.class_names or (cache.classes if folder_labels else None)
    return Manifest(
        name=provenance.model,
        architecture=architecture.to_dict(),
        input=network.input.to_dict(),
        quantization=spec.to_dict(),
        source=network.source.to_dict(),
        calibration={
            "digest": cache.digest,
            "images": len(cache.calibration),
            "held_out": len(cache.held_out),
            "skipped": len(cache.skipped),
            "folder_labels": folder_labels,
            "names_classes": classes is not None and network.class_names is None,
        },
        classes=classes if architecture.plan is None else architecture.plan.names,
        versions={
            "python": platform.python_version(),
            **_versions("edged", "torch", "torchvision", "numpy", "onnxruntime", "openvino"),
        },
        started_at=provenance.started_at,
        finished_at=provenance.finished_at,
        task=architecture.task,
        detection=None if architecture.plan is None else detection.to_dict(),
        activations=None if compressed.activations is None else compressed.activations.to_dict(),
        serve=served.serve,
    )


def _versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
