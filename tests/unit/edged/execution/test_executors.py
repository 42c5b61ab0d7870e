"""Engines give the network's outputs, with the threads they are given, and name a model that they cannot load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edged.errors import ArtifactError
from edged.execution.executors import OnnxExecutor, TorchExecutor
from edged.execution.onnx_model import onnx_model
from edged.models.registry import Architecture, build
from edged.spec import InputSpec

ARCHITECTURE = Architecture("cifar_resnet20", 10, stem="cifar", shortcut="pad")
SPEC = InputSpec(16, 16)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(ARCHITECTURE)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model.eval()


@pytest.fixture(scope="module")
def model(network: torch.nn.Module) -> bytes:
    data: bytes = onnx_model(network, {}, None, ARCHITECTURE, SPEC).SerializeToString()
    return data


@pytest.mark.parametrize("images", [1, 5])
def test_engines_give_the_outputs_of_the_network(network: torch.nn.Module, model: bytes, images: int) -> None:
    x = np.random.default_rng(images).standard_normal((images, 3, 16, 16), np.float32)
    before = x.copy()
    with torch.inference_mode():
        expected = network(torch.from_numpy(x)).numpy()
    for engine in (TorchExecutor(network), OnnxExecutor(model, 2)):
        np.testing.assert_allclose(engine.run(x), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(engine.run(np.asfortranarray(x)), expected, rtol=1e-4, atol=1e-4)
        assert np.array_equal(x, before)


def test_engines_name_themselves_and_their_threads(network: torch.nn.Module, model: bytes) -> None:
    assert (TorchExecutor(network).name, TorchExecutor(network).threads) == ("torch", torch.get_num_threads())
    assert (OnnxExecutor(model, 3).name, OnnxExecutor(model, 3).threads) == ("onnxruntime", 3)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(
        ArtifactError, match=r"ONNX Runtime cannot load .*model\.onnx: .*; quantize the checkpoint again"
    ):
        OnnxExecutor(path, 1)
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot load the model: "):
        OnnxExecutor(b"no model", 1)


def test_onnx_runtime_needs_no_torch(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    code = """
import sys
from pathlib import Path
import numpy as np
from edged.execution.executors import OnnxExecutor
assert OnnxExecutor(Path(sys.argv[1]), 1).run(np.zeros((2, 3, 16, 16), np.float32)).shape == (2, 10)
assert not {"torch", "onnx"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.onnx")], check=True)


def test_the_number_of_torchs_threads_is_that_of_each_thread() -> None:
    code = """
import threading, torch
from edged.execution.executors import use_torch_threads
loader = threading.Thread(target=use_torch_threads, args=(2,)); loader.start(); loader.join()
use_torch_threads(2)
reader = threading.Thread(target=torch.set_num_threads, args=(1,)); reader.start(); reader.join()
print(torch.get_num_threads())
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as the fork server has it
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "2\n"
