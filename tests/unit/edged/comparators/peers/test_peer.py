from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from edged.calibration.dataset import ImageCache, build_cache
from edged.comparators.peers.peer import IntegerTool, open_peer
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


@pytest.mark.parametrize("name", ["brevitas-gptq", "brevitas-qronos", "quantize-static", "nncf"])
@pytest.mark.filterwarnings("ignore")  # theirs
def test_eight_bits_agree_with_full_precision(name: str, model: nn.Module, cache: ImageCache, tmp_path: Path):
    package = {"quantize-static": "onnxruntime", "nncf": "nncf"}.get(name, "brevitas")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    before, level = {key: value.clone() for key, value in model.state_dict().items()}, logging.getLogger().level
    peer = open_peer(name, 8, 16)
    found = peer.quantize(model, trained.RESNET20, cache)
    assert peer.activation_bits == (8 if isinstance(peer, IntegerTool) else None)
    reference = predict(model, cache, cache.held_out)
    outputs = predict(found, cache, cache.held_out)
    assert fidelity(reference, outputs).agreement > 90
    assert not torch.equal(reference, outputs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert logging.getLogger().level == level
    if package == "brevitas":
        layer = quantizable_layers(found)["layer1.0.conv1"].weight.flatten(1)
        assert max(len(row.unique()) for row in layer) <= 256


def test_a_tool_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="nncf is not installed"):
        open_peer("nncf", 8, 16)


def test_an_unknown_tool_is_refused():
    with pytest.raises(UsageError, match="did you mean 'brevitas-gptq'"):
        open_peer("brevitas-gtpq", 4, 16)
