"""Buffers of a device by cuda-python or torch, and the name of the GPU; both devices are the CPU's memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edged.errors import DeviceError, MemoryLimitError
from edged.execution.cuda_memory import CudaPythonMemory, DeviceMemory, TorchMemory, device_memory, gpu_name
from tests.support.fake_gpu import FakeTensorRt

MEMORIES: dict[str, Callable[[], DeviceMemory]] = {
    "cuda-python": CudaPythonMemory,
    "torch": lambda: TorchMemory("cpu"),
}
SOURCE = """
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
"""


@pytest.mark.parametrize("kind", MEMORIES)
def test_what_is_copied_there_comes_back(fake_tensorrt: FakeTensorRt, kind: str) -> None:
    memory = MEMORIES[kind]()
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    address = memory.allocate(given.nbytes)
    other = memory.allocate(given.nbytes)
    memory.upload(address, given)
    memory.upload(other, given + 1)
    found = np.empty_like(given)
    memory.download(found, address)
    memory.synchronize()
    assert np.array_equal(found, given)
    memory.free(address)
    memory.free(other)
    assert isinstance(memory.stream, int)


def test_a_full_device_is_an_error_with_a_remedy(fake_tensorrt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.use(gpu_memory="100")
    memory = CudaPythonMemory()
    address = memory.allocate(80)
    with pytest.raises(MemoryLimitError, match="the GPU ran out of memory"):
        memory.allocate(21)
    memory.free(address)
    memory.free(memory.allocate(100))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(MemoryLimitError, match="the GPU ran out of memory"):
        TorchMemory("cpu").allocate(8)


def test_a_failed_call_names_itself(fake_tensorrt: FakeTensorRt) -> None:
    memory = CudaPythonMemory()
    with pytest.raises(DeviceError, match="cudaFree failed: cudaErrorInvalidValue; `edged doctor` checks the driver"):
        memory.free(1)
    fake_tensorrt.use(gpu="")
    with pytest.raises(DeviceError, match="cudaStreamCreate failed: cudaErrorNoDevice"):
        CudaPythonMemory()


def test_cuda_python_is_preferred_to_torch(fake_tensorrt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(device_memory(), CudaPythonMemory)
    fake_tensorrt.hide("cuda")
    monkeypatch.setattr("edged.execution.cuda_memory.TorchMemory", lambda: "torch's")
    assert device_memory() == "torch's"  # type: ignore[comparison-overlap]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_either_the_error_says_what_to_install(fake_tensorrt: FakeTensorRt) -> None:
    fake_tensorrt.hide("cuda")
    with pytest.raises(DeviceError, match=r"cuda-python is not installed, and torch: .*; install cuda-python"):
        device_memory()


def test_the_gpu_is_named_by_cuda_python(fake_tensorrt: FakeTensorRt) -> None:
    fake_tensorrt.use(gpu="NVIDIA Thor")
    assert gpu_name() == "NVIDIA Thor (8.7)"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here")
@pytest.mark.parametrize("count", [0, 1])
def test_the_gpu_is_named_by_the_driver_otherwise(tmp_path: Path, count: int) -> None:
    (tmp_path / "cuda.c").write_text(SOURCE)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", f"-DCOUNT={count}", "-o", library, tmp_path / "cuda.c"], check=True)
    code = "from edged.execution.cuda_memory import gpu_name; print(gpu_name())"
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if count:
        assert done.stdout == "Orin (8.7)\n"
    else:
        assert "DeviceError: the CUDA driver finds no device (code 0)" in done.stderr


def test_a_missing_driver_is_named(fake_tensorrt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.hide("cuda")
    monkeypatch.setattr("edged.execution.cuda_memory._DRIVER", "libnone.so.1")
    with pytest.raises(DeviceError, match=r"there is no CUDA driver: libnone\.so\.1: .*; `edged doctor` says"):
        gpu_name()
