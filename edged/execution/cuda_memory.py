"""Memory of a CUDA device for an engine that takes addresses, by cuda-python or by torch."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edged.errors import DeviceError, MemoryLimitError

_DRIVER = "libcuda.so.1"
_COMPUTE_CAPABILITY = (75, 76)  # major and minor, of CUdevice_attribute


class DeviceMemory(Protocol):
    """Buffers on a device, and a stream in which copies and computations run in order.

    Attributes:
        stream: Handle of the stream.
    """

    stream: int

    def allocate(self, size: int) -> int:
        """Return the address of a new buffer.

        Args:
            size: Bytes.

        Raises:
            MemoryLimitError: The device has less memory left.
        """

    def free(self, address: int) -> None:
        """Free a buffer."""

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to a buffer; it must not change before `synchronize`."""

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy a buffer to a contiguous array, which is complete after `synchronize`."""

    def synchronize(self) -> None:
        """Wait until all work of the stream is done."""


class CudaPythonMemory:
    """Memory of the current CUDA device, by cuda-python.

    Raises:
        DeviceError: The device cannot be used.
        ImportError: cuda-python is not installed.
    """

    def __init__(self) -> None:
        self._cuda = import_cuda_python()
        self._stream = self._call("cudaStreamCreate")
        self.stream = int(self._stream)

    def allocate(self, size: int) -> int:
        """Return the address of a new buffer."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Free a buffer."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to a buffer."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy a buffer to a contiguous array."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until all work of the stream is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._cuda, name, *arguments)


class TorchMemory:
    """Memory of a torch device.

    Args:
        device: The device; None for the current CUDA device.
    """

    def __init__(self, device: Any = None) -> None:
        self._torch = importlib.import_module("torch")
        self._device = self._torch.device("cuda" if device is None else device)
        on_gpu = self._device.type == "cuda"
        self._stream = self._torch.cuda.Stream(self._device) if on_gpu else None
        self.stream = 0 if self._stream is None else int(self._stream.cuda_stream)
        self._buffers: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        """Return the address of a new buffer."""
        try:
            buffer = self._torch.empty(size, dtype=self._torch.uint8, device=self._device)
        except self._torch.OutOfMemoryError as error:
            raise _full() from error
        self._buffers[buffer.data_ptr()] = buffer
        return int(buffer.data_ptr())

    def free(self, address: int) -> None:
        """Free a buffer."""
        del self._buffers[address]

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to a buffer."""
        with self._torch.cuda.stream(self._stream):
            self._buffers[address][: array.nbytes].copy_(self._bytes(array), non_blocking=True)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy a buffer to a contiguous array."""
        with self._torch.cuda.stream(self._stream):
            self._bytes(array).copy_(self._buffers[address][: array.nbytes], non_blocking=True)

    def synchronize(self) -> None:
        """Wait until all work of the stream is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def _bytes(self, array: npt.NDArray[Any]) -> Any:
        return self._torch.from_numpy(array.reshape(-1).view(np.uint8))


def device_memory() -> DeviceMemory:
    """Return the memory of the current CUDA device, by the package that takes less memory itself.

    Raises:
        DeviceError: Neither package can use a CUDA device.
    """
    try:
        return CudaPythonMemory()
    except ImportError:
        pass
    try:
        return TorchMemory()
    except (ImportError, AssertionError, RuntimeError) as error:  # a torch without CUDA asserts
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(
            f"no CUDA device can be used: cuda-python is not installed, and torch: {reason}; install cuda-python"
        ) from error


def gpu_name() -> str:
    """Return the name and the compute capability of the first GPU, such as "Orin (8.7)", without torch.

    Raises:
        DeviceError: There is no usable GPU.
    """
    try:
        cuda = import_cuda_python()
    except ImportError:
        return _name_by_driver()
    found = call(cuda, "cudaGetDeviceProperties", 0)
    return f"{found.name.decode(errors='replace')} ({found.major}.{found.minor})"


def import_cuda_python() -> Any:
    """Return cuda-python's module of the CUDA runtime, whose place depends on its version.

    Raises:
        ImportError: cuda-python is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")


def call(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call a function of cuda-python and return its result, or None if it has none.

    Raises:
        MemoryLimitError: The device's memory is full.
        DeviceError: The function failed otherwise.
    """
    code, *results = getattr(cuda, name)(*arguments)
    if code == cuda.cudaError_t.cudaErrorMemoryAllocation:
        raise _full()
    if code != cuda.cudaError_t.cudaSuccess:
        raise DeviceError(f"{name} failed: {getattr(code, 'name', code)}; `edged doctor` checks the driver")
    return results[0] if results else None


def _full() -> MemoryLimitError:
    return MemoryLimitError("the GPU ran out of memory; free its memory, or lower batching.max_batch")


def _name_by_driver() -> str:
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise DeviceError(f"there is no CUDA driver: {error}; `edged doctor` says what to install") from error
    count = ctypes.c_int()
    if (code := driver.cuInit(0)) or (code := driver.cuDeviceGetCount(ctypes.byref(count))) or not count.value:
        raise DeviceError(f"the CUDA driver finds no device (code {code}); `edged doctor` checks the driver")
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return f"{name.value.decode(errors='replace')} ({'.'.join(capability)})"
