"""Engines give the network's outputs, with the threads they are given, and name a model that they cannot load."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edged.errors import ArtifactError, MemoryLimitError
from edged.execution.executors import HALF_TOLERANCE, TOLERANCE, OnnxExecutor, TorchExecutor
from edged.execution.onnx_model import onnx_model
from edged.execution.onnx_providers import Providers
from edged.models.registry import Architecture, build
from edged.spec import InputSpec
from tests.support.pretended import DEVICE, PretendedDevice

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


def test_a_gpu_computes_in_half_precision_where_the_network_is(network: torch.nn.Module) -> None:
    """The device fails where tensors of two devices or of two data types meet."""
    x = np.random.default_rng(3).standard_normal((4, 3, 16, 16), np.float32)
    before = x.copy()
    expected = TorchExecutor(network).run(x)
    with PretendedDevice():
        engine = TorchExecutor(copy.deepcopy(network), DEVICE)
        found = engine.run(x)
        kinds = {value.dtype for name, value in engine._network.state_dict().items() if "running" in name}
        weights = {value.dtype for name, value in engine._network.named_parameters() if "conv" in name}
    assert (engine.name, engine.tolerance) == ("torch_lazy", HALF_TOLERANCE)
    assert (kinds, weights) == ({torch.float32}, {torch.float16})
    assert found.dtype == np.float32
    assert np.array_equal(x, before)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert TOLERANCE < error < HALF_TOLERANCE / 2


def test_large_variances_do_not_overflow_in_half_precision() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    network[1].running_var.fill_(1e6)
    network[1].weight.data.fill_(1e3)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    expected = TorchExecutor(copy.deepcopy(network)).run(x)
    with PretendedDevice():
        np.testing.assert_allclose(TorchExecutor(network, DEVICE).run(x), expected, rtol=0.02, atol=0.01)


class Full(torch.nn.Module):
    """A network that fills the GPU, on the calls it is given."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls -= 1
        if self.calls >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return images


def test_an_exhausted_gpu_is_a_clear_error_and_the_next_request_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))
    x = np.ones((1, 3, 2, 2), np.float32)
    with PretendedDevice():
        engine = TorchExecutor(Full(1), DEVICE)
        with pytest.raises(MemoryLimitError, match=r"the GPU ran out of memory for requests; free its memory"):
            engine.run(x)
        assert released == [True]
        assert np.array_equal(engine.run(x), x)


def test_a_network_that_does_not_fit_into_the_gpu(monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    moved = copy.deepcopy(network)
    monkeypatch.setattr(moved, "to", full)
    with pytest.raises(MemoryLimitError, match=r"serve\.device: cpu"):
        TorchExecutor(moved, DEVICE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_the_outputs_of_the_network(network: torch.nn.Module) -> None:
    x = np.random.default_rng(3).standard_normal((4, 3, 16, 16), np.float32)
    expected = TorchExecutor(network).run(x)
    engine = TorchExecutor(copy.deepcopy(network), torch.device("cuda"))
    assert engine.name == "torch_cuda"
    assert np.linalg.norm(engine.run(x) - expected) / np.linalg.norm(expected) < HALF_TOLERANCE


def test_a_provider_that_is_not_there_is_left_out_with_a_warning(
    model: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    x = np.zeros((1, 3, 16, 16), np.float32)
    engine = OnnxExecutor(model, 1, providers=Providers(["tensorrt", "cpu"]))
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        assert engine.name == "onnxruntime"
        assert np.array_equal(engine.run(x), OnnxExecutor(model, 1).run(x))
        assert caplog.messages == ["ONNX Runtime has no provider tensorrt here; see `edged doctor`"]
    caplog.clear()
    assert OnnxExecutor(model, 1, providers=Providers(["tensorrt", "cuda"], integers=True)).name == "onnxruntime"
    assert caplog.messages == []
