"""Measure the accuracy or mAP of a checkpoint or an artifact on labeled images."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edged.artifacts.engines import DamagedModelError, engine_of, open_executor, require_engine
from edged.artifacts.reader import Artifact, read_artifact
from edged.calibration.dataset import ImageCache
from edged.calibration.yolo_labels import read_labels
from edged.errors import UsageError
from edged.evaluation.class_names import name_difference
from edged.evaluation.classification import accuracy, predict, top1_hits
from edged.evaluation.detection import average_precision, average_precision_without, detect_all
from edged.evaluation.standard_errors import Sample, sample_of_groups, sample_of_hits
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.models.registry import Architecture
from edged.pipeline.engine import EngineNetwork
from edged.pipeline.evaluation import labels_fit
from edged.pipeline.readings import choose_reading
from edged.pipeline.rebuild import rebuild
from edged.progress import ProgressListener
from edged.spec import AUTO, FLOAT, INTEGER, Choice, Fit, InputSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorable:
    """A network to measure.

    Attributes:
        model: The network in eval mode, on the CPU; of an artifact as its engine computes it.
        architecture: Architecture of the network.
        input: Preparation of its images.
        loaded: The network as it was loaded from a checkpoint; None for an artifact.
        input_from: Where the preparation is from, such as "the artifact".
        names: Class names of the network, or of the artifact whose preparation is used; None if they are unknown.
        warnings: What the user should know before comparing the result with another one, a line each.
        engine: Engine that computes it; "torch" for a checkpoint.
        precision: Numbers that it computes with, one of `edged.spec.PRECISIONS`.
    """

    model: nn.Module
    architecture: Architecture
    input: InputSpec
    loaded: LoadedNetwork | None = None
    input_from: str = ""
    names: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    engine: str = "torch"
    precision: str = FLOAT


def open_scorable(
    path: Path,
    arch: str | None,
    input_settings: Mapping[str, Any],
    choice: Choice | None = None,
    preprocessing_of: Path | None = None,
    runtime: str = AUTO,
) -> Scorable:
    """Load the network of a checkpoint file or an artifact folder.

    Args:
        path: A checkpoint file or an artifact folder.
        arch: Expected architecture, or None.
        input_settings: Fields of InputSpec that differ from the architecture's default, or from the
            artifact's own.
        choice: Which network of a checkpoint to take, and what its tensors do not tell; not used for an artifact.
        preprocessing_of: An artifact folder whose preparation of images is used instead of the default, or None.
        runtime: Engine that computes an artifact, one of `edged.spec.RUNTIMES`; "auto" for the one that would serve it.
            A checkpoint is computed by torch.

    Raises:
        RejectedError: The checkpoint or the artifact cannot be used.
        UsageError: The artifact holds another architecture, or a setting is impossible, or a runtime for a checkpoint.
        UnavailableError: The engine is not installed.
    """
    if runtime not in (AUTO, "torch") and not path.is_dir():
        raise UsageError(f"--runtime has value {runtime!r}, and {path} is no artifact; torch computes checkpoints")
    like = None if preprocessing_of is None else read_artifact(preprocessing_of)
    settings = {**({} if like is None else _settings_of(like.input)), **input_settings}
    if not path.is_dir():
        return _open_checkpoint(
            load_checkpoint(path, arch, input_settings=settings, choice=choice), input_settings, like
        )
    artifact = read_artifact(path)
    if arch not in (None, artifact.architecture.name) and (arch, artifact.manifest.task) != ("yolov5", "detection"):
        raise UsageError(f"--arch has value {arch!r}, the artifact {path} holds a {artifact.architecture.name}")
    spec = artifact.input.override(settings)
    artifact.architecture.check_input(spec)
    warnings = _warnings_of_artifact(artifact, spec, path)
    origin = _with_options("the artifact" if like is None else f"the artifact {like.directory}", input_settings)
    manifest = artifact.manifest
    # A checkpoint may name its classes otherwise than folders do, which are often codes.
    comparable = manifest.task == "detection" or manifest.calibration.get("names_classes", True)
    engine = _engine(artifact, spec, runtime)
    with tempfile.TemporaryDirectory(prefix="edged-") as folder:  # for an engine that has to be built
        cache = Path(folder) if engine == "tensorrt" else None
        load = partial(open_executor, artifact, engine, torch.get_num_threads(), cache=cache)
        try:
            executor = load()
        except DamagedModelError as error:
            rebuild(artifact.directory)
            log.warning("%s; it was written again from the codes", error.damage)
            executor = load()
    precision = FLOAT if artifact.activations is None else INTEGER
    return Scorable(
        EngineNetwork(executor),
        artifact.architecture,
        spec,
        None,
        origin,
        manifest.classes if comparable else None,
        tuple(warnings),
        executor.name,
        precision,
    )


def _engine(artifact: Artifact, spec: InputSpec, runtime: str) -> str:
    if spec.size == artifact.input.size:
        engine = engine_of(artifact, runtime)
        if runtime not in (AUTO, engine):  # a service would go on with the engine that is there
            require_engine(runtime)
            raise UsageError(
                f"--runtime has value {runtime!r}, and the model of {artifact.directory} is not written for it; leave"
                f" it out, or quantize the checkpoint again with --runtime {runtime}"
            )
        return engine
    if runtime not in (AUTO, "torch"):
        raise UsageError(
            f"--runtime has value {runtime!r}, and an ONNX model computes images of {artifact.input.size} pixels only;"
            " leave out --input-size or the runtime"
        )
    return "torch"


def _open_checkpoint(network: LoadedNetwork, options: Mapping[str, Any], like: Artifact | None) -> Scorable:
    architecture = network.architecture
    names = None if architecture.plan is None else architecture.plan.names
    warnings: list[str] = []
    if like is None:
        origin = f"the default of {architecture.name}"
        if not options:
            warnings.append(
                f"the images were prepared by default; if training of {network.source.name} did it differently, give"
                " --input-size, --resize, --mean and --std, and to compare it with an artifact, give"
                " --preprocessing-of ARTIFACT"
            )
    else:
        origin = f"the artifact {like.directory}"
        if (source := like.manifest.source)["sha256"] != network.source.sha256:
            warnings.append(
                f"{like.directory} was not made of this checkpoint, but of {source['name']!r:.80}"
                f" (sha256 {str(source['sha256'])[:16]}...)"
            )
        theirs = like.manifest.classes
        if names is not None and theirs is not None and (difference := name_difference(names, theirs)) is not None:
            warnings.append(f"the checkpoint and {like.directory} differ in class names: {difference}")
        names = names or theirs
    return Scorable(
        network.model, architecture, network.input, network, _with_options(origin, options), names, tuple(warnings)
    )


def _settings_of(spec: InputSpec) -> dict[str, Any]:
    """Return the fields of a preparation that a user can set."""
    settings = {"size": spec.size, "mean": list(spec.mean), "std": list(spec.std)}
    return settings if spec.fit is Fit.LETTERBOX else {**settings, "resize": spec.resize}


def _warnings_of_artifact(artifact: Artifact, spec: InputSpec, path: Path) -> list[str]:
    if spec != artifact.input:
        return [
            f"the images were prepared differently from those that the artifact was quantized with"
            f" ({artifact.input.describe()}), so the result says little of how it serves"
        ]
    if spec != artifact.architecture.default_input:
        return [
            f"the artifact prepares images differently from the default of {artifact.architecture.name}: to compare it"
            f" with its checkpoint {artifact.manifest.source['name']!r:.80}, evaluate that with --preprocessing-of"
            f" {path}; with the default, a difference would not come from quantizing"
        ]
    return []


def _with_options(origin: str, options: Mapping[str, Any]) -> str:
    names = {"size": "--input-size"}
    given = ", ".join(sorted(names.get(name, f"--{name}") for name in options))
    return f"{given}, otherwise {origin}" if given else origin


def score(
    network: Scorable, cache: ImageCache, data: Path, listener: ProgressListener, with_sample: bool = False
) -> dict[str, Any]:
    """Measure top-1 and top-5, or a detector's mAP50 and mAP50-95, over all images of a cache.

    Args:
        network: The network to measure.
        cache: Decoded images of `data`.
        data: A folder of images per class, in the order of the logits; for a detector images with YOLO labels.
        listener: Receives the stage "predict" and the number of images that are done.
        with_sample: Whether to add "sample", from which `edged.evaluation.standard_errors` computes the standard error
            of top-1 or of mAP50-95, and of its difference to that of another network.

    Returns:
        "top1" and "top5", or "map50", "map50_95" and "boxes" (labeled boxes), in percent; and "images" (measured),
        "skipped", "skipped_images", "task", "architecture", "classes", "input", "input_from", "engine", "precision",
        "split" (of a data.yaml), "warnings" and "comparison_key": two results can be compared if it is the same, as
        images, labels and preparation are equal then. For a checkpoint also "checkpoint", see
        `edged.models.loading.Selection`.

    Raises:
        ArchitectureError: The tensors of a checkpoint leave a question open, and no answer is better than chance.
        UsageError: The folders or labels are not those of the model's classes.
        CalibrationError: There are too few images.
    """
    loaded = None if network.loaded is None else choose_reading(network.loaded, cache)
    full = network.model if loaded is None else loaded.model
    architecture = network.architecture if loaded is None else loaded.architecture
    # Convolutions of a CPU run faster on this layout. An engine has its own.
    model = full.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    measure = _accuracy if architecture.plan is None else _precision
    measured, sample, labels = measure(model, architecture, cache, data, listener)
    return {
        "images": len(cache),
        **measured,
        **({"sample": sample()} if with_sample else {}),
        "skipped": len(cache.skipped),
        "skipped_images": [vars(entry) for entry in cache.skipped],
        "task": architecture.task,
        "architecture": architecture.name,
        "classes": architecture.num_classes,
        "input": network.input.to_dict(),
        "input_from": network.input_from,
        "engine": network.engine,
        "precision": network.precision,
        "split": cache.split,
        "comparison_key": _comparison_key(cache, network.input, labels),
        "warnings": [*network.warnings, *_named_differently(network, cache, data)],
        **({} if loaded is None else {"checkpoint": loaded.selection.to_dict()}),
    }


def _comparison_key(cache: ImageCache, spec: InputSpec, labels: object) -> str:
    return hashlib.sha256(json.dumps([cache.digest, spec.to_dict(), labels]).encode()).hexdigest()[:16]


def _named_differently(network: Scorable, cache: ImageCache, data: Path) -> list[str]:
    """Return a warning if the images name other classes than the network."""
    theirs = cache.names or cache.classes
    if network.names is None or not theirs or (difference := name_difference(network.names, theirs)) is None:
        return []
    return [f"the model and {data} differ in class names, in this order: {difference}"]


def _accuracy(
    model: nn.Module, architecture: Architecture, cache: ImageCache, data: Path, listener: ProgressListener
) -> tuple[dict[str, Any], Callable[[], Sample], object]:
    classes, outputs = len(cache.classes), architecture.num_classes
    if classes != outputs:
        raise UsageError(
            f"--data {data} has {classes} class folders, the model has {outputs} classes; give one folder a class"
        )
    indices = torch.arange(len(cache))
    labels = cache.labels_of(indices)
    assert labels is not None  # noqa: S101 - there are classes
    with listener.stage("predict"):
        logits = predict(model, cache, indices, listener=listener)
        result = accuracy(logits, labels)
    scores = {"top1": result.top1, "top5": result.top5}
    return scores, lambda: sample_of_hits(top1_hits(logits, labels)), labels.tolist()


def _precision(
    model: nn.Module, architecture: Architecture, cache: ImageCache, data: Path, listener: ProgressListener
) -> tuple[dict[str, Any], Callable[[], Sample], object]:
    assert architecture.plan is not None  # noqa: S101 - a detector
    labels = read_labels(cache.root, cache.files)
    if labels is not None:
        labels = labels.of_model(architecture.num_classes)
    if labels is None or not labels_fit(labels, architecture):
        notes = [] if labels is None else [labels.misfit(architecture.num_classes) or "labels without a box"]
        found = "; ".join([*(labels.notes() if labels is not None else []), *notes]) or "it has no label files"
        raise UsageError(
            f"--data {data}: {found}; give images with YOLO labels of the model's {architecture.num_classes} classes"
        )
    for note in labels.notes():
        log.warning("%s: %s", data, note)
    with listener.stage("predict"):
        detections = detect_all(model, architecture.plan, cache, torch.arange(len(cache)), listener=listener)
        result = average_precision(detections, labels.boxes, cache.sizes)
    scores = {"map50": result.map50, "map50_95": result.map50_95, "boxes": result.boxes, "images": result.images}
    known = [None if boxes is None else [boxes.classes.tolist(), boxes.boxes.tolist()] for boxes in labels.boxes]
    return scores, lambda: sample_of_groups(average_precision_without(detections, labels.boxes, cache.sizes)), known
