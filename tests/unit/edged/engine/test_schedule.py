from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from edged.engine.schedule import ENOUGH_IMAGES, LEAST_CACHED_BYTES, MOST_CACHED_BYTES, Step, schedule, with_batches
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.models.resnet import CifarResNet


def steps(
    available: int = 100, batch_bytes: int = 1 << 24, oversampling: float = 32, min_images: int = 1
) -> list[Step]:
    model = CifarResNet(3).eval()
    layers, image = quantizable_layers(model), torch.zeros(1, 3, 32, 32)
    single = schedule(Program(model), model, layers, image, available, oversampling, min_images)
    return with_batches(single, batch_bytes)


def counts(available: int, oversampling: float, min_images: int) -> list[int]:
    return [step.images for step in steps(available, oversampling=oversampling, min_images=min_images)]


def test_each_layer_sees_enough_columns_per_input():
    # First layer: 27 inputs, 1,024 positions. Last 3x3 layers: 576 inputs, 64 positions. Head: 64 inputs, 1 position.
    found = counts(available=10_000, oversampling=32, min_images=1)
    assert found[0] == 1
    assert found[-2] == 32 * 576 // 64
    assert found[-1] == 32 * 64


def test_image_counts_are_between_the_minimum_and_the_number_available():
    assert set(counts(available=100, oversampling=32, min_images=128)) == {100}
    assert min(counts(available=1000, oversampling=32, min_images=128)) == 128


def test_later_layers_never_see_fewer_images():
    found = counts(available=10_000, oversampling=8, min_images=2)
    assert found == sorted(found)


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20, 1 << 23, 1 << 30])
def test_batches_grow_by_doubling_within_the_byte_limit(batch_bytes: int):
    found = steps(batch_bytes=batch_bytes)
    for step, following in itertools.pairwise(found):
        assert following.batch % step.batch == 0
    assert all(step.batch == 1 or step.batch * step.peak_bytes <= batch_bytes for step in found)
    assert found[-1].batch == (128 if batch_bytes > 1 << 22 else found[-1].batch)


def test_bytes_per_image_match_those_counted_by_hand():
    first, second = steps()[:2]
    image, map_16 = 3 * 32 * 32 * 4, 16 * 32 * 32 * 4
    assert (first.live_bytes, first.output_bytes) == (image, map_16)
    # The stem's inputs and outputs are alive together; then BatchNorm and ReLU hold two maps at a time.
    assert first.peak_bytes == 2 * map_16
    # The block's input stays alive for the shortcut.
    assert (second.live_bytes, second.output_bytes, second.peak_bytes) == (map_16, map_16, 3 * map_16)


def test_batches_of_many_images_are_no_larger_than_the_processors_cache():
    found = steps(batch_bytes=1 << 30)
    assert {step.batch for step in found} == {32, 64, 128}
    assert all(step.batch <= ENOUGH_IMAGES or step.batch * step.peak_bytes <= LEAST_CACHED_BYTES for step in found)


@pytest.mark.parametrize(("inputs", "images"), [(100, 64), (1_200, 128)])
def test_a_batch_that_is_added_to_larger_sums_has_more_images(inputs: int, images: int):
    image_bytes = 45_000  # 128 of them are as large as sums of 1,200 inputs, and 93 fit the cache in any case
    (step,) = with_batches([Step(100, 1, image_bytes, image_bytes, 4 * inputs**2, image_bytes)], 1 << 30)
    assert step.batch == images
    (wide,) = with_batches([dataclasses.replace(step, sums_bytes=1 << 30, peak_bytes=1 << 17)], 1 << 30)
    assert wide.batch == MOST_CACHED_BYTES >> 17
