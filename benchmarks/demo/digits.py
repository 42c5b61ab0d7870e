"""A small real task without a download: the handwritten digits of scikit-learn, and networks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edged.models.registry import Architecture, build

SIDE = 16  # the 8x8 scans, enlarged
TRAIN, TEST = slice(0, -360), slice(-360, None)
# A ResNet-20 is trained in seconds; a ResNet-18 takes as long as users' networks in service.
RESNET20 = Architecture("cifar_resnet20", num_classes=10, stem="cifar")
RESNET18 = Architecture("resnet18", num_classes=10, stem="small")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Digits:
    """Images uint8 [n, 16, 16] with labels [n], in a fixed random order; the last 360 are for testing."""

    images: np.ndarray
    labels: np.ndarray


def load() -> Digits:
    """Return all 1,797 digits."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    scans = np.repeat(np.repeat(data.images[order] * (255 / 16), 2, axis=1), 2, axis=2)
    return Digits(scans.round().astype(np.uint8), data.target[order])


def write_folders(digits: Digits, part: slice, folder: Path) -> None:
    """Write one PNG per image into a folder per class."""
    for index, (image, label) in enumerate(zip(digits.images[part], digits.labels[part], strict=True)):
        target = folder / str(label) / f"{index:04}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(target)


def train(
    digits: Digits,
    epochs: int,
    seed: int = 0,
    architecture: Architecture = RESNET20,
    show: Callable[[int, int], None] = lambda *_: None,
) -> nn.Module:
    """Train a network on the digits and return it in eval mode.

    Args:
        digits: Images and labels.
        epochs: Passes over the training images.
        seed: Seed of the weights and the order of the images.
        architecture: Network to train.
        show: Called with the number of finished steps and the number of all steps.
    """
    torch.manual_seed(seed)
    model = build(architecture)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    inputs, labels = tensors(digits, TRAIN), torch.from_numpy(digits.labels[TRAIN]).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(inputs) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    model.train().requires_grad_(True)
    done = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
            done += 1
            show(done, steps)
    return model.eval().requires_grad_(False)


def tensors(digits: Digits, part: slice) -> Tensor:
    """Return network inputs float32 [n, 3, 16, 16]."""
    grey = torch.from_numpy(digits.images[part]).float().div(255)[:, None]
    return (grey - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
