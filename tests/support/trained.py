"""Small networks trained for a few seconds on real data: handwritten digits, 8x8 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edged.calibration.images import normalize
from edged.models.registry import Architecture, build
from edged.spec import InputSpec

INPUT = InputSpec(8, 8)
CALIBRATION, TEST = slice(0, 200), slice(1500, None)
RESNET20 = Architecture("cifar_resnet20", 10, stem="cifar", shortcut="pad")


@dataclass(frozen=True)
class Digits:
    """Digit images uint8 [n, 3, 8, 8] and their labels int64 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def tensors(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return network inputs and labels."""
        return torch.from_numpy(normalize(self.images[part], INPUT)), torch.from_numpy(self.labels[part])

    def png(self, index: int, path: Path) -> None:
        """Write one image."""
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.images[index].transpose(1, 2, 0)).save(path)

    def write_folders(self, folder: Path, part: slice = CALIBRATION) -> Path:
        """Write a folder per class."""
        for index in range(*part.indices(len(self.labels))):
            self.png(index, folder / str(self.labels[index]) / f"{index:04}.png")
        return folder


def load() -> Digits:
    """Return all 1,797 digits of scikit-learn, shuffled once."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    grey = (data.images[order] * (255 / 16)).round().astype(np.uint8)
    return Digits(np.repeat(grey[:, None], 3, axis=1), data.target[order].astype(np.int64))


def train(digits: Digits, epochs: int, seed: int) -> nn.Module:
    """Train a CIFAR ResNet-20; four epochs reach about 98 %, 0 epochs keep its initial weights."""
    torch.manual_seed(seed)
    model = build(RESNET20)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
    if not epochs:
        return model.eval().requires_grad_(False)
    images, labels = digits.tensors(slice(0, 1500))
    steps = epochs * -(-len(images) // 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    model.train().requires_grad_(True)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)
