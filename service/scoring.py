"""Accuracy of a checkpoint or an artifact on labelled images; imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edged.artifacts.reader import read_artifact
from edged.errors import UsageError
from edged.evaluation.classification import accuracy, predict
from edged.models.checkpoint import load_checkpoint
from edged.observer import Observer
from service.job import input_spec
from service.pipeline import Loaded, calibrate, load, set_up_torch


def score(
    path: Path,
    data: Path,
    cache_root: Path,
    arch: str | None,
    overrides: Mapping[str, Any],
    threads: int | None,
    observer: Observer,
) -> dict[str, Any]:
    """Top-1 and top-5 over all images of `data`, in percent.

    Args:
        path: A checkpoint file or an artifact folder.
        data: A folder of images per class, in the order of the logits.
        cache_root: Where decoded images are kept.
        arch: Expected architecture, or None.
        overrides: Of the InputSpec: of the architecture's for a checkpoint, of the remembered one for an artifact.
        threads: Threads for computing; None for one a core.
        observer: Told of the stages "load", "decode" and "predict".

    Raises:
        EdgedError: The model or the images cannot be used, or the folders are not the model's classes.
    """
    set_up_torch(threads, "cpu")
    with observer.stage("load"):
        loaded = _load(path, arch, overrides)
    with observer.stage("decode"):
        cache = calibrate(data, cache_root, loaded.input, None, observer)
    classes, outputs = len(cache.classes), loaded.architecture.num_classes
    if classes != outputs:
        raise UsageError(
            f"--data {data} has {classes} class folders, the model has {outputs} classes; give one folder a class"
        )
    indices = torch.arange(len(cache))
    labels = cache.labels_of(indices)
    assert labels is not None  # noqa: S101 - there are classes
    model = loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    with observer.stage("predict"):
        result = accuracy(predict(model, cache, indices, observer=observer), labels)
    return {
        "top1": result.top1,
        "top5": result.top5,
        "images": result.images,
        "skipped": len(cache.skipped),
        "architecture": loaded.architecture.name,
        "classes": outputs,
        "input": loaded.input.to_dict(),
    }


def _load(path: Path, arch: str | None, overrides: Mapping[str, Any]) -> Loaded:
    if not path.is_dir():
        return load(load_checkpoint(path).state, arch, overrides)
    artifact = read_artifact(path)
    if arch is not None and artifact.architecture.name != arch:
        raise UsageError(f"--arch has value {arch!r}, the artifact {path} holds a {artifact.architecture.name}")
    return Loaded(artifact.load_model(), artifact.architecture, input_spec(artifact.input, overrides))
