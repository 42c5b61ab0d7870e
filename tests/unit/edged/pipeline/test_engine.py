"""A quantized network is judged and recorded in the engine that serves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edged.artifacts.engines import open_executor
from edged.artifacts.reader import read_artifact
from edged.calibration.dataset import build_cache
from edged.compress import compress
from edged.execution.executors import OnnxExecutor
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.engine import EngineNetwork, executor_of, for_service
from edged.pipeline.quantize import quantize
from edged.spec import Method, QuantSpec
from tests.support.tasks import Task


@pytest.fixture
def network(task: Task) -> LoadedNetwork:
    return load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_the_outputs_are_those_of_the_engine(
    task: Task, network: LoadedNetwork, tmp_path: Path, activation_bits: int | None
) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    spec = QuantSpec(method=Method.RTN, bits=6, activation_bits=activation_bits)
    plain = compress(network.model, cache, spec)
    served = for_service(plain, network)
    assert isinstance(served.served, EngineNetwork)
    assert isinstance(executor_of(served), OnnxExecutor)
    images = next(cache.batches(cache.held_out, len(cache.held_out)))
    assert torch.equal(served.logits, torch.from_numpy(OnnxExecutor(served.onnx or b"", 1).run(images.numpy())))
    # Rounding in whole numbers instead of float32 moves a value by a step here and there.
    tolerance = 1e-4 if activation_bits is None else 0.05 * float(plain.logits.abs().max())
    torch.testing.assert_close(served.logits, plain.logits, rtol=1e-4, atol=tolerance)


def test_an_artifact_reproduces_what_was_recorded(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    spec = QuantSpec(method=Method.RTN, activation_bits=8)
    quantize(network, task.calibration, tmp_path / "out", spec, images=64, device="cpu")
    artifact = read_artifact(tmp_path / "out")
    warmup = artifact.load_warmup()
    assert warmup is not None
    engine = open_executor(artifact, "onnxruntime", warmup.threads)
    assert warmup.compare([engine.run(image[None]) for image in warmup.images(artifact.input)]).identical


def test_a_head_that_only_torch_computes_is_served_by_torch(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    cache = build_cache(task.calibration, tmp_path, network.input, limit=64)
    classes = network.model.linear.out_features
    network.model.linear = torch.nn.Sequential(network.model.linear, torch.nn.ELU(), torch.nn.Linear(classes, classes))
    plain = compress(network.model.eval(), cache, QuantSpec(method=Method.RTN))
    served = for_service(plain, network)
    assert served.onnx is None
    assert executor_of(served).name == "torch"
    assert np.isfinite(served.logits.numpy()).all()
