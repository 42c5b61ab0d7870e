"""Warmup images of an artifact, and the comparison of their outputs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edged.artifacts.reader import read_artifact
from edged.artifacts.warmup import MAX_IMAGES, MAX_VALUES, Warmup, load_warmup, record, save_warmup
from edged.artifacts.writer import write_artifact
from edged.calibration.dataset import ImageCache, build_cache
from edged.errors import ArtifactError
from edged.execution.executors import TOLERANCE, TorchExecutor
from edged.models.registry import build
from edged.spec import InputSpec
from tests.support.artifact_samples import ARCHITECTURE, manifest
from tests.support.pictures import write_folder
from tests.support.pretended import DEVICE, PretendedDevice

SPEC = InputSpec(16, 16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder / "images", classes=2, images=20)
    return build_cache(folder / "images", folder / "cache", SPEC)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = build(ARCHITECTURE)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model.eval()


def answers(network: nn.Module, warmup: Warmup) -> list[Any]:
    """Compute outputs as a generation does: one by one."""
    engine = TorchExecutor(copy.deepcopy(network))
    return [engine.run(image[None]) for image in warmup.images(SPEC)]


def recorded(network: nn.Module, cache: ImageCache) -> Warmup:
    return record(TorchExecutor(copy.deepcopy(network)), cache)


def test_warmup_images_are_calibration_images_of_several_classes(cache: ImageCache, network: nn.Module) -> None:
    warmup = recorded(network, cache)
    assert warmup.pixels.shape == (MAX_IMAGES, 3, 16, 16)
    found = [
        next(index for index in range(len(cache)) if np.array_equal(cache.images[index], image))
        for image in warmup.pixels
    ]
    assert set(found) <= set(cache.calibration.tolist())
    assert cache.labels is not None
    assert set(cache.labels[found].tolist()) == {0, 1}


def test_the_same_network_gives_the_same_bits_and_another_one_does_not(cache: ImageCache, network: nn.Module) -> None:
    warmup = recorded(network, cache)
    same = warmup.compare(answers(network, warmup))
    assert (same.identical, same.relative_error, same.close) == (True, 0.0, True)
    other = copy.deepcopy(network)
    next(iter(other.parameters())).data[0] *= 1.5  # one row of one layer
    compared = warmup.compare(answers(other, warmup))
    assert not compared.close
    assert compared.digest != compared.recorded == warmup.digest


def test_half_precision_of_a_gpu_is_close_and_another_network_is_not(cache: ImageCache, network: nn.Module) -> None:
    warmup = recorded(network, cache)
    other = copy.deepcopy(network)
    next(iter(other.parameters())).data[0] *= 1.5
    closes = []
    for each in (network, other):
        with PretendedDevice():
            engine = TorchExecutor(copy.deepcopy(each), DEVICE)
            outputs = [engine.run(image[None]) for image in warmup.images(SPEC)]
        compared = warmup.compare(outputs)
        assert not compared.identical
        assert not compared.close
        closes.append(compared.within(engine.tolerance))
    assert closes == [True, False]


@pytest.mark.parametrize(
    ("error", "close"), [(TOLERANCE / 2, True), (TOLERANCE * 2, False), (float("nan"), False), (float("inf"), False)]
)
def test_only_rounding_errors_are_close(error: float, close: bool) -> None:
    outputs = np.ones((2, 10), np.float32)
    warmup = Warmup(np.zeros((2, 3, 16, 16), np.uint8), outputs, "ab", 1)
    compared = warmup.compare([row[None] for row in outputs * (1 + error)])
    assert (compared.identical, compared.close) == (False, close)
    assert compared.recorded == "ab"


def test_outputs_of_another_shape_are_not_close() -> None:
    warmup = Warmup(np.zeros((1, 3, 16, 16), np.uint8), np.zeros((1, 10), np.float32), "ab", 1)
    assert not warmup.compare([np.zeros((1, 11), np.float32)]).close
    assert warmup.compare([np.zeros((1, 10), np.float32)]).close  # all-zero outputs do not divide by zero


class Wide(nn.Module):
    """A network with far more outputs than are stored, like a detector."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_large_images_and_outputs_are_bounded(tmp_path: Path) -> None:
    spec = InputSpec(800, 800)
    write_folder(tmp_path / "images", classes=0, images=32)
    warmup = recorded(Wide(), build_cache(tmp_path / "images", tmp_path / "cache", spec))
    assert warmup.pixels.shape == (1, 3, 800, 800)
    assert warmup.outputs.shape == (1, MAX_VALUES)
    entry = save_warmup(tmp_path / "warmup.safetensors", warmup)
    assert entry["bytes"] < 3e6
    whole = [warmup.images(spec).reshape(1, -1)]
    assert warmup.compare(whole).identical
    whole[0][0, -2] += 1e-6  # not a stored value, so only the digest changes
    compared = warmup.compare(whole)
    assert (compared.identical, compared.relative_error, compared.close) == (False, 0.0, True)


def test_the_warmup_is_stored_with_the_artifact(cache: ImageCache, network: nn.Module, tmp_path: Path) -> None:
    warmup = recorded(network, cache)
    about = manifest(architecture=ARCHITECTURE.to_dict(), input=SPEC.to_dict())
    write_artifact(tmp_path / "a", quantized={}, rest=network.state_dict(), manifest=about, report={}, warmup=warmup)
    artifact = read_artifact(tmp_path / "a")
    loaded = artifact.load_warmup()
    assert loaded is not None
    assert loaded.compare(answers(artifact.load_model(), loaded)).identical
    assert np.array_equal(loaded.pixels, warmup.pixels)
    assert artifact.manifest.warmup is not None
    assert artifact.manifest.warmup["images"] == MAX_IMAGES
    assert artifact.manifest.warmup["threads"] == torch.get_num_threads()
    assert loaded.engine == artifact.manifest.warmup["engine"] == "torch"

    write_artifact(tmp_path / "b", quantized={}, rest=network.state_dict(), manifest=about, report={})
    assert read_artifact(tmp_path / "b").load_warmup() is None
    assert not (tmp_path / "b" / "warmup.safetensors").exists()


def test_a_damaged_warmup_file_raises_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "warmup.safetensors"
    warmup = Warmup(np.zeros((2, 3, 16, 16), np.uint8), np.zeros((2, 10), np.float32), "ab", 1)
    entry = save_warmup(path, warmup)
    assert dataclasses.astuple(load_warmup(path, entry, SPEC))[2:] == ("ab", 1, None)
    for changes, spec, reason in (
        ({}, InputSpec(32, 32), r"not the images \[2, 3, 32, 32\]"),
        ({"images": 3}, SPEC, r"not the images \[3, 3, 16, 16\]"),
        ({"sha256": "00"}, SPEC, r"its manifest says 00\.\.\.; quantize the checkpoint again"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            load_warmup(path, entry | changes, spec)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"cannot read .*warmup\.safetensors: No such file"):
        load_warmup(path, entry, SPEC)
