"""An engine gives the outputs of its model, whatever the number of images; behind a fake TensorRT is ONNX Runtime."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edged.errors import EngineError, MemoryLimitError
from edged.execution.cuda_memory import CudaPythonMemory, DeviceMemory, TorchMemory
from edged.execution.executors import HALF_TOLERANCE
from edged.execution.tensorrt_engine import BuildLimits, build_engine
from edged.execution.tensorrt_executor import REBUILT_TOLERANCE, TensorRtExecutor, open_engine
from tests.support.executions import session
from tests.support.fake_gpu import FakeTensorRt
from tests.support.tensorrt import float_model, integer_model


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32), np.float32)


def expected(model: bytes, given: np.ndarray) -> np.ndarray:
    return np.concatenate([session(model).run(None, {"input": image[None]})[0] for image in given])


@pytest.mark.parametrize("torch", [False, True], ids=["cuda-python", "torch"])
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_an_engine_gives_the_outputs_of_its_model(
    fake_tensorrt: FakeTensorRt, tmp_path: Path, batch: int | None, torch: bool
) -> None:
    model = integer_model(batch)
    plan = build_engine(model, tmp_path, BuildLimits(max_batch=3)).plan
    memory: DeviceMemory = TorchMemory("cpu") if torch else CudaPythonMemory()
    engine = TensorRtExecutor(plan, 2, memory)
    assert (engine.name, engine.threads, engine.tolerance) == ("tensorrt", 2, REBUILT_TOLERANCE)
    for count in (1, 2, 3, 1, 7):  # buffers grow, and more images than fit are computed in parts
        given = images(count)
        before = given.copy()
        found = engine.run(np.asfortranarray(given))
        assert (found.dtype, found.shape) == (np.float32, (count, 7))
        np.testing.assert_allclose(found, expected(integer_model(1), given), rtol=1e-4, atol=1e-4)
        assert np.array_equal(given, before)


def test_outputs_of_two_calls_do_not_share_memory(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    engine = open_engine(integer_model(), tmp_path, 1)
    first = engine.run(images(1))
    kept = first.copy()
    engine.run(images(2)[1:])
    assert np.array_equal(first, kept)


def test_an_engine_in_float(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    engine = open_engine(float_model(), tmp_path, 1)
    assert engine.tolerance == HALF_TOLERANCE
    given = images(2)
    np.testing.assert_allclose(engine.run(given), expected(float_model(), given), rtol=1e-4, atol=1e-4)


def test_a_stale_engine_is_not_loaded_but_built_anew_before_it_is(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    plan = build_engine(integer_model(), tmp_path).plan
    fake_tensorrt.use(tensorrt="10.7.0")
    with pytest.raises(EngineError, match=r"was built for TensorRT 10\.3\.0, and here is 10\.7\.0"):
        TensorRtExecutor(plan, 1)
    assert open_engine(integer_model(), tmp_path, 1).run(images(1)).shape == (1, 7)


def test_a_plan_that_cannot_be_loaded_is_built_anew_once(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    """Its digest is right, as where a library that TensorRT uses was exchanged."""
    built = build_engine(integer_model(), tmp_path)
    built.plan.write_bytes(b"no plan")
    sidecar = built.plan.with_suffix(".json")
    text = sidecar.read_text().replace(built.sidecar.plan_sha256, hashlib.sha256(b"no plan").hexdigest())
    sidecar.write_text(text)
    with pytest.raises(EngineError, match=r"TensorRT cannot load .*\.plan; delete it, and the engine is built anew"):
        TensorRtExecutor(built.plan, 1)
    assert open_engine(integer_model(), tmp_path, 1).run(images(1)).shape == (1, 7)


def test_images_that_do_not_fit_are_an_error(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    engine = open_engine(integer_model(), tmp_path, 1)
    with pytest.raises(EngineError, match=r"does not take images of shape \[1, 3, 16, 16\]"):
        engine.run(np.zeros((1, 3, 16, 16), np.float32))


def test_a_full_gpu_is_an_error_with_a_remedy_and_smaller_batches_go_on(
    fake_tensorrt: FakeTensorRt, tmp_path: Path
) -> None:
    fake_tensorrt.use(gpu_memory=str(3 * 32 * 32 * 4 + 100))
    engine = open_engine(integer_model(), tmp_path, 1, BuildLimits(max_batch=4))
    with pytest.raises(
        MemoryLimitError, match=r"the GPU ran out of memory; free its memory, or lower batching\.max_ba"
    ):
        engine.run(images(4))
    assert engine.run(images(1)).shape == (1, 7)


def test_a_failed_computation_is_an_error(
    fake_tensorrt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(integer_model(), tmp_path, 1)
    monkeypatch.setenv("FAKE_TENSORRT_FAILS", "execution")
    with pytest.raises(EngineError, match="TensorRT did not compute the images"):
        engine.run(images(1))
