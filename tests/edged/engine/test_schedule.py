from __future__ import annotations

import torch

from edged.engine.schedule import images_per_cut
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.models.resnet import CifarResNet


def counts(available: int, oversampling: float, min_images: int) -> list[int]:
    model = CifarResNet(3).eval()
    layers = quantizable_layers(model)
    return images_per_cut(Program(model), model, layers, torch.zeros(1, 3, 32, 32), available, oversampling, min_images)


def test_each_layer_sees_enough_columns_per_input():
    # First layer: 27 inputs, 1,024 positions. Last 3x3 layers: 576 inputs, 64 positions. Head: 64 inputs, 1 position.
    found = counts(available=10_000, oversampling=32, min_images=1)
    assert found[0] == 1
    assert found[-2] == 32 * 576 // 64
    assert found[-1] == 32 * 64


def test_never_fewer_than_the_minimum_nor_more_than_there_are():
    assert set(counts(available=100, oversampling=32, min_images=128)) == {100}
    assert min(counts(available=1000, oversampling=32, min_images=128)) == 128


def test_later_layers_never_see_fewer_images():
    found = counts(available=10_000, oversampling=8, min_images=2)
    assert found == sorted(found)
