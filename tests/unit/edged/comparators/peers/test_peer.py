from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from edged.calibration.dataset import ImageCache, build_cache
from edged.comparators.peers import aimet
from edged.comparators.peers.peer import IntegerTool, open_peer, versions_of
from edged.errors import UnavailableError, UsageError
from edged.evaluation.classification import predict
from edged.evaluation.fidelity import fidelity
from edged.models.layers import quantizable_layers
from edged.models.registry import load_model
from tests.support import trained
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def cache(task: Task, tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return build_cache(task.calibration, tmp_path_factory.mktemp("cache"), trained.INPUT)


@pytest.fixture(scope="module")
def model(task: Task) -> nn.Module:
    return load_model(torch.load(task.first, weights_only=True), trained.RESNET20).eval()


@pytest.mark.parametrize("name", ["brevitas-gptq", "brevitas-qronos", "aimet-adaround", "quantize-static", "nncf"])
@pytest.mark.filterwarnings("ignore")  # theirs
def test_eight_bits_agree_with_full_precision(name: str, model: nn.Module, cache: ImageCache, tmp_path: Path):
    try:
        peer = open_peer(name, 8, 16, iterations=2)
    except UnavailableError as error:
        pytest.skip(str(error))
    before, level = {key: value.clone() for key, value in model.state_dict().items()}, logging.getLogger().level
    found = peer.quantize(model, trained.RESNET20, cache)
    assert peer.activation_bits == (8 if isinstance(peer, IntegerTool) else None)
    reference = predict(model, cache, cache.held_out)
    outputs = predict(found, cache, cache.held_out)
    assert fidelity(reference, outputs).agreement > 90
    assert not torch.equal(reference, outputs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert logging.getLogger().level == level
    assert all(versions_of(peer).values())
    assert (peer.iterations == 2) == (name == "aimet-adaround")
    if peer.activation_bits is None:
        layer = quantizable_layers(found)["layer1.0.conv1"].weight.flatten(1)
        assert max(len(row.unique()) for row in layer) <= 256


@pytest.mark.filterwarnings("ignore")  # theirs
def test_fewer_images_than_a_batch_are_enough(model: nn.Module, cache: ImageCache):
    found = open_peer("quantize-static", 8, len(cache) + 1).quantize(model, trained.RESNET20, cache)
    assert fidelity(predict(model, cache, cache.held_out), predict(found, cache, cache.held_out)).agreement > 90


def test_a_tool_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="nncf is not installed"):
        open_peer("nncf", 8, 16)


def test_an_unknown_tool_is_refused():
    with pytest.raises(UsageError, match="did you mean 'brevitas-gptq'"):
        open_peer("brevitas-gtpq", 4, 16)


def test_a_tool_that_cannot_be_imported_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    def broken() -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(aimet, "prepare", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UnavailableError, match=r"aimet_torch cannot be imported here.*nms does not exist.*aimet-torch"):
        open_peer("aimet-adaround", 4, 16)
