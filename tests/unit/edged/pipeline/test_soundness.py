"""Networks that compute nonsense are rejected before they are quantized, others are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from edged.calibration.dataset import ImageCache, build_cache
from edged.errors import GateError
from edged.evaluation.gates import Gates
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.soundness import sound_network
from tests.support import scenes, trained
from tests.support.tasks import DetectionTask, Task
from tests.support.yolov5_samples import tiny_model


@pytest.fixture(scope="module")
def cache(task: Task, tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return build_cache(task.calibration, tmp_path_factory.mktemp("cache"), trained.INPUT)


@pytest.fixture(scope="module")
def unlabeled(task: Task, tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    folder = tmp_path_factory.mktemp("flat")
    for index in range(40):
        task.digits.png(index, folder / f"{index}.png")
    return build_cache(folder, tmp_path_factory.mktemp("cache"), trained.INPUT)


@pytest.fixture
def network(task: Task) -> LoadedNetwork:
    return load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})


def test_a_trained_network_passes_as_it_is(network: LoadedNetwork, cache: ImageCache) -> None:
    assert sound_network(network, cache, Gates()) is network


def test_random_weights_pass_where_there_are_no_labels(
    task: Task, network: LoadedNetwork, cache: ImageCache, unlabeled: ImageCache
) -> None:
    random = dataclasses.replace(network, model=trained.train(task.digits, epochs=0, seed=1))
    assert sound_network(random, unlabeled, Gates()) is random
    with pytest.raises(
        GateError, match=r"full-precision network is right on \d+ of \d+ .* chance is 1\d\.\d %; .*above_chance: f"
    ):
        sound_network(random, cache, Gates())
    assert sound_network(random, cache, Gates(above_chance=False)) is random


def test_zeros_are_rejected_for_constant_outputs(
    network: LoadedNetwork, cache: ImageCache, unlabeled: ImageCache
) -> None:
    for parameter in network.model.parameters():
        parameter.zero_()
    for images in (cache, unlabeled):
        with pytest.raises(GateError, match=r"outputs of the full-precision network are the same .*varied_outputs: f"):
            sound_network(network, images, Gates())
    assert sound_network(network, unlabeled, Gates(varied_outputs=False)) is network


def test_a_last_layer_that_reads_nothing_is_collapsed(network: LoadedNetwork, unlabeled: ImageCache) -> None:
    network.model.linear.weight.mul_(1e-9)
    with pytest.raises(GateError, match="are the same for all of 8 different images"):
        sound_network(network, unlabeled, Gates())


def test_equal_images_say_nothing(network: LoadedNetwork, tmp_path: Path) -> None:
    for index in range(32):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / f"{index}.png")
    equal = build_cache(tmp_path, tmp_path / "cache", trained.INPUT)
    assert sound_network(network, equal, Gates()) is network


def test_an_absurd_weight_is_named(network: LoadedNetwork, unlabeled: ImageCache) -> None:
    network.model.layer1[0].conv1.weight[0, 0, 0, 0] = 1e30
    with pytest.raises(GateError, match=r"'layer1\.0\.conv1\.weight' holds the value 1e\+30.*plausible_weights: false"):
        sound_network(network, unlabeled, Gates())
    assert sound_network(network, unlabeled, Gates(plausible_weights=False)) is network


def test_outputs_that_overflow_are_rejected_in_any_case(network: LoadedNetwork, unlabeled: ImageCache) -> None:
    network.model.bn1.weight.fill_(1e30)
    network.model.layer1[0].bn1.weight.fill_(1e30)
    with pytest.raises(
        GateError, match=r"full precision hold NaN or infinity \(tensor 'layer1.0.bn1.weight' holds the value 1e"
    ):
        sound_network(network, unlabeled, Gates.none())


def test_a_detector_without_any_variation_is_rejected(detection_task: DetectionTask, tmp_path: Path) -> None:
    cache = build_cache(detection_task.calibration, tmp_path, scenes.INPUT, limit=32)
    network = load_checkpoint(detection_task.first)
    assert sound_network(network, cache, Gates()) is network
    random = dataclasses.replace(network, model=tiny_model(scenes.plan()))
    assert sound_network(random, cache, Gates()) is random
    for head in network.model.model[-1].m:
        head.weight.zero_()
    with pytest.raises(GateError, match="same for all of 8 different images"):
        sound_network(network, cache, Gates())


def test_random_detectors_of_the_published_size_pass(detection_task: DetectionTask, tmp_path: Path) -> None:
    from edged.models.yolov5.standard import standard

    cache = build_cache(detection_task.calibration, tmp_path, scenes.INPUT, limit=32)
    network = load_checkpoint(detection_task.first)
    torch.manual_seed(0)
    large = dataclasses.replace(network, model=tiny_model(standard("n", ["a"] * 80)))
    assert sound_network(large, cache, Gates()) is large
