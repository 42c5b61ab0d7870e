"""Trained networks and images for benchmarks: CIFAR ResNet-20/32/56 and a ResNet-18 on imagenette."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache, build_cache
from edged.errors import UsageError
from edged.evaluation.classification import predict
from edged.models.checkpoint import read_checkpoint
from edged.models.registry import load_model, recognize
from edged.spec import InputSpec

CALIBRATION_IMAGES = 1024
TEST_BATCH = 128


@dataclass(frozen=True)
class Network:
    """A checkpoint with its images.

    Attributes:
        file: Checkpoint under weights/.
        calibration: Folder of calibration images.
        test: Folder of test images.
        input: Preprocessing of images.
        batch_size: Images per calibration step, for every method.
    """

    file: str
    calibration: str
    test: str
    input: InputSpec
    batch_size: int


_CIFAR = ("cifar10/calib", "cifar10/test", InputSpec(32, 32), 64)
NETWORKS = {
    "resnet20": Network("resnet20-12fca82f.th", *_CIFAR),
    "resnet32": Network("resnet32-d509ac18.th", *_CIFAR),
    "resnet56": Network("resnet56-4bfd9763.th", *_CIFAR),
    "resnet18": Network("resnet18-imagenette.pth", "imagenette/calib", "imagenette/val", InputSpec(128, 144), 48),
}


@dataclass(frozen=True)
class Loaded:
    """A network ready to be quantized and measured.

    Attributes:
        model: Full precision, eval mode.
        calibration: Calibration images, a tenth of them held out.
        test: Test images.
        labels: Their classes, int64 [n].
        reference: Full-precision logits of the test images, float32 [n, classes].
        batch_size: Images per calibration step.
    """

    model: nn.Module
    calibration: ImageCache
    test: ImageCache
    labels: Tensor
    reference: Tensor
    batch_size: int


def data_root() -> Path:
    """Return the folder of EDGED_DATA, or exit with a message if it is not set."""
    root = os.environ.get("EDGED_DATA")
    if not root:
        sys.exit("set EDGED_DATA to the folder that holds weights/, cifar10/, imagenette/ and coco/")
    return Path(root)


def load(name: str, cache_root: Path, test_images: int | None = None) -> Loaded:
    """Load checkpoint, images and full-precision outputs; cache decoded images and outputs in `cache_root`.

    Args:
        name: Key of NETWORKS.
        cache_root: Folder for decoded images and outputs.
        test_images: Number of test images to draw; None for all.

    Raises:
        UsageError: The test images have no class folders.
    """
    network, root = NETWORKS[name], data_root()
    state = read_checkpoint(root / "weights" / network.file).state
    model = load_model(state, recognize(state)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibration = build_cache(root / network.calibration, cache_root, network.input, limit=CALIBRATION_IMAGES)
    test = build_cache(root / network.test, cache_root, network.input, limit=test_images)
    if test.labels is None:
        raise UsageError(f"the test images of {name} have no class folders")
    return Loaded(
        model=model,
        calibration=calibration,
        test=test,
        labels=test.labels,
        reference=_reference(model, test, cache_root / f"{network.file}-{test.digest[:16]}.logits"),
        batch_size=network.batch_size,
    )


def _reference(model: nn.Module, test: ImageCache, file: Path) -> Tensor:
    if file.exists():
        logits: Tensor = torch.load(file, weights_only=True)
        return logits
    logits = predict(model, test, torch.arange(len(test)), batch_size=TEST_BATCH)
    torch.save(logits, file)
    return logits
