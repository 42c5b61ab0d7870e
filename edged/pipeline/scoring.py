"""Measure the accuracy or mAP of a checkpoint or an artifact on labeled images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edged.artifacts.reader import read_artifact
from edged.calibration.dataset import ImageCache
from edged.calibration.yolo_labels import read_labels
from edged.errors import UsageError
from edged.evaluation.classification import accuracy, predict
from edged.evaluation.detection import average_precision, detect_all
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.models.registry import Architecture
from edged.pipeline.evaluation import labels_fit
from edged.pipeline.readings import choose_reading
from edged.progress import ProgressListener
from edged.spec import Choice, InputSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorable:
    """A network to measure.

    Attributes:
        model: The network in eval mode, on the CPU.
        architecture: Architecture of the network.
        input: Preparation of its images.
        loaded: The network as it was loaded from a checkpoint; None for an artifact.
    """

    model: nn.Module
    architecture: Architecture
    input: InputSpec
    loaded: LoadedNetwork | None = None


def open_scorable(
    path: Path, arch: str | None, input_settings: Mapping[str, Any], choice: Choice | None = None
) -> Scorable:
    """Load the network of a checkpoint file or an artifact folder.

    Args:
        path: A checkpoint file or an artifact folder.
        arch: Expected architecture, or None.
        input_settings: Fields of InputSpec that differ from the architecture's default, or from the
            artifact's own.
        choice: Which network of a checkpoint to take, and what its tensors do not tell; not used for an artifact.

    Raises:
        RejectedError: The checkpoint or the artifact cannot be used.
        UsageError: The artifact holds another architecture, or a setting is impossible.
    """
    if not path.is_dir():
        network = load_checkpoint(path, arch, input_settings=input_settings, choice=choice)
        return Scorable(network.model, network.architecture, network.input, network)
    artifact = read_artifact(path)
    if arch not in (None, artifact.architecture.name) and (arch, artifact.manifest.task) != ("yolov5", "detection"):
        raise UsageError(f"--arch has value {arch!r}, the artifact {path} holds a {artifact.architecture.name}")
    spec = artifact.input.override(input_settings)
    artifact.architecture.check_input(spec)
    return Scorable(artifact.load_model(), artifact.architecture, spec)


def score(network: Scorable, cache: ImageCache, data: Path, listener: ProgressListener) -> dict[str, Any]:
    """Measure top-1 and top-5, or a detector's mAP50 and mAP50-95, over all images of a cache.

    Args:
        network: The network to measure.
        cache: Decoded images of `data`.
        data: A folder of images per class, in the order of the logits; for a detector images with YOLO labels.
        listener: Receives the stage "predict" and the number of images that are done.

    Returns:
        "top1" and "top5", or "map50", "map50_95" and "boxes" (labeled boxes), in percent; and "images", "skipped",
        "task", "architecture", "classes" and "input"; for a checkpoint also "checkpoint", see
        `edged.models.loading.Selection`.

    Raises:
        ArchitectureError: The tensors of a checkpoint leave a question open, and no answer is better than chance.
        UsageError: The folders or labels are not those of the model's classes.
        CalibrationError: A label file cannot be read or understood.
    """
    loaded = None if network.loaded is None else choose_reading(network.loaded, cache)
    full = network.model if loaded is None else loaded.model
    architecture = network.architecture if loaded is None else loaded.architecture
    # Convolutions of a CPU run faster on this layout.
    model = full.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    measure = _accuracy if architecture.plan is None else _precision
    return {
        **measure(model, architecture, cache, data, listener),
        "images": len(cache),
        "skipped": len(cache.skipped),
        "task": architecture.task,
        "architecture": architecture.name,
        "classes": architecture.num_classes,
        "input": network.input.to_dict(),
        **({} if loaded is None else {"checkpoint": loaded.selection.to_dict()}),
    }


def _accuracy(
    model: nn.Module, architecture: Architecture, cache: ImageCache, data: Path, listener: ProgressListener
) -> dict[str, Any]:
    classes, outputs = len(cache.classes), architecture.num_classes
    if classes != outputs:
        raise UsageError(
            f"--data {data} has {classes} class folders, the model has {outputs} classes; give one folder a class"
        )
    indices = torch.arange(len(cache))
    labels = cache.labels_of(indices)
    assert labels is not None  # noqa: S101 - there are classes
    with listener.stage("predict"):
        result = accuracy(predict(model, cache, indices, listener=listener), labels)
    return {"top1": result.top1, "top5": result.top5}


def _precision(
    model: nn.Module, architecture: Architecture, cache: ImageCache, data: Path, listener: ProgressListener
) -> dict[str, Any]:
    assert architecture.plan is not None  # noqa: S101 - a detector
    labels = read_labels(cache.root, cache.files)
    if labels is None or not labels_fit(labels, architecture):
        notes = [] if labels is None else [labels.misfit(architecture.num_classes) or "labels without a box"]
        found = "; ".join([*(labels.notes() if labels is not None else []), *notes]) or "no label files"
        raise UsageError(
            f"--data {data} has {found}; give images with YOLO labels of the model's {architecture.num_classes} classes"
        )
    for note in labels.notes():
        log.warning("%s: %s", data, note)
    with listener.stage("predict"):
        detections = detect_all(model, architecture.plan, cache, torch.arange(len(cache)), listener=listener)
        result = average_precision(detections, labels.boxes, cache.sizes)
    return {"map50": result.map50, "map50_95": result.map50_95, "boxes": result.boxes}
