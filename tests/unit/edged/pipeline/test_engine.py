"""A quantized network is judged and recorded in the engine that serves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edged.artifacts.engines import installed_engines, open_executor
from edged.artifacts.reader import read_artifact
from edged.calibration.dataset import build_cache
from edged.compress import compress
from edged.device import CPU
from edged.errors import ArchitectureError, ArtifactError, EngineError
from edged.execution.executors import OnnxExecutor
from edged.execution.tensorrt_engine import BuildLimits
from edged.execution.tensorrt_rules import check_tensorrt
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.engine import Building, EngineNetwork, Engines, executor_of
from edged.pipeline.quantize import quantize
from edged.spec import Method, QuantSpec, Scheme
from tests.support.fake_gpu import FakeTensorRt
from tests.support.pretended import DEVICE, PretendedDevice
from tests.support.tasks import Task


@pytest.fixture
def network(task: Task) -> LoadedNetwork:
    return load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})


@pytest.mark.parametrize("precision", ["float", "integer"])
def test_the_outputs_are_those_of_the_engine(
    task: Task, network: LoadedNetwork, tmp_path: Path, precision: str
) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    plain = compress(network.model, cache, QuantSpec(method=Method.RTN, bits=6, activation_bits=8))
    engines = Engines(plain, network, 1)
    served = engines.load("onnxruntime", precision)
    assert served.precision == precision
    assert isinstance(served.served, EngineNetwork)
    assert isinstance(executor_of(served), OnnxExecutor)
    images = next(cache.batches(cache.held_out, len(cache.held_out)))
    assert torch.equal(served.logits, torch.from_numpy(OnnxExecutor(served.onnx or b"", 1).run(images.numpy())))
    # Rounding in whole numbers instead of float32 moves a value by a step here and there.
    other = engines.load("torch", precision)
    assert executor_of(other).name == "torch"
    tolerance = 1e-4 if precision == "float" else 0.05 * float(plain.logits.abs().max())
    torch.testing.assert_close(served.logits, other.logits, rtol=1e-4, atol=tolerance)
    assert torch.equal(engines.without(precision).logits, other.logits)


def test_full_precision_is_computed_once(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    plain = compress(network.model, cache, QuantSpec(method=Method.RTN))
    before = plain.reference_logits
    assert Engines(plain, network, 1).load("onnxruntime", "float").reference_logits is before


def test_an_artifact_reproduces_what_was_recorded(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    spec = QuantSpec(method=Method.RTN, activation_bits=8)
    quantize(network, task.calibration, tmp_path / "out", spec, images=64, device="cpu")
    artifact = read_artifact(tmp_path / "out")
    warmup = artifact.load_warmup()
    assert warmup is not None
    engine = open_executor(artifact, "onnxruntime", warmup.threads)
    assert warmup.compare([engine.run(image[None]) for image in warmup.images(artifact.input)]).identical


def test_a_head_that_only_torch_computes(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    classes = network.model.linear.out_features
    network.model.linear = torch.nn.Sequential(network.model.linear, torch.nn.ELU(), torch.nn.Linear(classes, classes))
    engines = Engines(compress(network.model.eval(), cache, QuantSpec(method=Method.RTN)), network, 1)
    with pytest.raises(ArchitectureError, match="ELU"):
        engines.load("onnxruntime", "float")
    served = engines.load("torch", "float")
    assert served.onnx is None
    assert executor_of(served).name == "torch"
    assert np.isfinite(served.logits.numpy()).all()


def test_what_an_engine_takes_for_itself_is_taken_once() -> None:
    """And OpenVINO is imported without its converter, whose import sends an event to a server."""
    script = """
import sys
from edged.artifacts.engines import installed_engines
from edged.memory import resident_bytes
from edged.pipeline.engine import start_engine

for engine in installed_engines():
    before = resident_bytes()
    start_engine(engine)
    print(engine, resident_bytes() - before > 1 << 20)
    start_engine(engine)
assert not {"openvino_telemetry", "openvino.tools.ovc"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {engine: str(engine != "torch") for engine in installed_engines()}


@pytest.mark.parametrize("bits", [7, 8])
def test_the_report_says_where_kernels_are_exact(
    task: Task, network: LoadedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """As on a processor without VNNI: OpenVINO does not serve codes that saturate, and ONNX Runtime takes its time."""
    monkeypatch.setattr("edged.artifacts.engines.needs_exact_kernels", lambda: True)
    monkeypatch.setattr("edged.artifacts.engines.openvino_saturates", lambda: True)
    spec = QuantSpec(method=Method.RTN, bits=bits, activation_bits=8)
    report = quantize(network, task.calibration, tmp_path / "out", spec, images=64, device="cpu").report
    artifact = read_artifact(tmp_path / "out")
    assert artifact.manifest.weights["wide_codes"] is (bits == 8)
    assert report["totals"]["exact_kernels"] is (bits == 8)
    refused = {each["engine"]: each["refused"] for each in report["totals"]["candidates"]}
    if "openvino" in refused:
        assert ("OpenVINO clips sums" in str(refused["openvino"])) is (bits == 8)
    executor = open_executor(artifact, "onnxruntime", 1)
    assert isinstance(executor, OnnxExecutor)
    assert executor.exact is (bits == 8)


def test_torch_on_a_gpu_is_judged_in_half_precision(
    task: Task, network: LoadedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    plain = compress(network.model, cache, QuantSpec(method=Method.RTN, bits=6, activation_bits=8))
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    monkeypatch.setattr("edged.pipeline.engine.choose_device", lambda name: DEVICE if name == "cuda" else CPU)
    engines = Engines(plain, network, 1, "cuda")
    expected = Engines(plain, network, 1).load("torch", "float").logits
    with PretendedDevice():
        served = engines.load("torch", "float")
        assert executor_of(served).name == f"torch_{DEVICE.type}"
        torch.testing.assert_close(served.logits, expected, rtol=0.02, atol=0.02)
    assert not torch.equal(served.logits, expected)
    after = plain.model.state_dict()
    assert all(value.dtype == after[name].dtype and torch.equal(value, after[name]) for name, value in before.items())
    assert executor_of(engines.load("torch", "integer")).name == "torch"


@pytest.mark.parametrize("precision", ["float", "integer"])
def test_tensorrt_computes_a_model_in_its_own_dialect(
    task: Task, network: LoadedNetwork, tmp_path: Path, fake_tensorrt: FakeTensorRt, precision: str
) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    spec = QuantSpec(method=Method.RTN, bits=6, activation_bits=8, scheme=Scheme.SYMMETRIC)
    plain = compress(network.model, cache, spec)
    building = Building(tmp_path / "engines", BuildLimits(max_batch=4))
    served = Engines(plain, network, 1, building=building).load("tensorrt", precision)
    assert executor_of(served).name == "tensorrt"
    assert served.precision == precision
    model = onnx.load_from_string(served.onnx or b"")
    assert check_tensorrt(model) == []
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node) is (precision == "integer")
    images = next(cache.batches(cache.held_out, len(cache.held_out)))
    expected = OnnxExecutor(served.onnx or b"", 1).run(images.numpy())
    torch.testing.assert_close(served.logits, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_what_tensorrt_does_not_take_is_named(
    task: Task, network: LoadedNetwork, tmp_path: Path, fake_tensorrt: FakeTensorRt
) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    plain = compress(
        network.model, cache, QuantSpec(method=Method.RTN, bits=4, scheme=Scheme.ASYMMETRIC, activation_bits=8)
    )
    with pytest.raises(ArtifactError, match=r"asymmetric, which TensorRT does not take; .* --scheme symmetric"):
        Engines(plain, network, 1, building=Building(tmp_path)).load("tensorrt", "integer")
    plain = compress(
        network.model, cache, QuantSpec(method=Method.RTN, bits=4, scheme=Scheme.SYMMETRIC, activation_bits=8)
    )
    with pytest.raises(EngineError, match="there is no folder for TensorRT's engines; another engine serves"):
        Engines(plain, network, 1).load("tensorrt", "integer")
