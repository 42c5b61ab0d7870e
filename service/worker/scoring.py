"""Accuracy or mAP of a checkpoint or an artifact on labelled images; imports torch."""

from __future__ import annotations

from collections.abc import Mapping
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
from edged.models.checkpoint import read_checkpoint
from edged.models.registry import Architecture
from edged.progress import ProgressListener
from service.worker.evaluation import fits
from service.worker.pipeline import Loaded, calibrate, load, set_up_torch


def score(
    path: Path,
    data: Path,
    cache_root: Path,
    arch: str | None,
    overrides: Mapping[str, Any],
    threads: int | None,
    listener: ProgressListener,
) -> dict[str, Any]:
    """Top-1 and top-5, or of a detector mAP50 and mAP50-95, over all images of `data`, in percent.

    Args:
        path: A checkpoint file or an artifact folder.
        data: A folder of images per class, in the order of the logits; for a detector images with YOLO labels.
        cache_root: Where decoded images are kept.
        arch: Expected architecture, or None.
        overrides: Of the InputSpec: of the architecture's for a checkpoint, of the remembered one for an artifact.
        threads: Threads for computing; None for one a core.
        listener: Told of the stages "load", "decode" and "predict".

    Raises:
        EdgedError: The model or the images cannot be used, or the folders are not the model's classes.
    """
    set_up_torch(threads, "cpu")
    with listener.stage("load"):
        loaded = _load(path, arch, overrides)
    with listener.stage("decode"):
        cache = calibrate(data, cache_root, loaded.input, None, listener)
    model = loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    measure = _accuracy if loaded.architecture.plan is None else _precision
    figures = measure(model, loaded.architecture, cache, data, listener)
    return {
        **figures,
        "images": len(cache),
        "skipped": len(cache.skipped),
        "task": loaded.architecture.task,
        "architecture": loaded.architecture.name,
        "classes": loaded.architecture.num_classes,
        "input": loaded.input.to_dict(),
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
    labels = read_labels(data, cache.files)
    if labels is None or not fits(labels, architecture):
        found = "no label files" if labels is None else "labels that name no box, or classes that the model lacks"
        raise UsageError(
            f"--data {data} has {found}; give images with YOLO labels of the model's {architecture.num_classes} classes"
        )
    with listener.stage("predict"):
        detections = detect_all(model, architecture.plan, cache, torch.arange(len(cache)), listener=listener)
        result = average_precision(detections, labels, cache.sizes)
    return {"map50": result.map50, "map50_95": result.map50_95, "boxes": result.boxes}


def _load(path: Path, arch: str | None, overrides: Mapping[str, Any]) -> Loaded:
    if not path.is_dir():
        return load(read_checkpoint(path), arch, overrides)
    artifact = read_artifact(path)
    if arch not in (None, artifact.architecture.name) and (arch, artifact.manifest.task) != ("yolov5", "detection"):
        raise UsageError(f"--arch has value {arch!r}, the artifact {path} holds a {artifact.architecture.name}")
    spec = artifact.input.override(overrides)
    artifact.architecture.check_input(spec)
    return Loaded(artifact.load_model(), artifact.architecture, spec)
