"""The functions of cuda-python that edged calls, on the CPU's memory. A buffer is exactly as large as was asked for.

FAKE_GPU          name of the GPU, Orin if it is not set; "" for no GPU
FAKE_GPU_MEMORY   bytes that can be allocated at once
"""

from __future__ import annotations

import ctypes
import enum
import os
from typing import Any


class cudaError_t(enum.Enum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class cudaMemcpyKind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStream_t:
    def __int__(self) -> int:
        return 4711


class cudaDeviceProp:
    name = os.environ.get("FAKE_GPU", "Orin").encode()
    major, minor = 8, 7


buffers: dict[int, Any] = {}
_OK = cudaError_t.cudaSuccess


def cudaGetDeviceProperties(device: int) -> tuple[Any, ...]:
    if device != 0 or os.environ.get("FAKE_GPU") == "":
        return cudaError_t.cudaErrorNoDevice, None
    found = cudaDeviceProp()
    found.name = os.environ.get("FAKE_GPU", "Orin").encode()
    return _OK, found


def cudaStreamCreate() -> tuple[Any, ...]:
    return (cudaError_t.cudaErrorNoDevice, None) if os.environ.get("FAKE_GPU") == "" else (_OK, cudaStream_t())


def cudaMalloc(size: int) -> tuple[Any, ...]:
    used = sum(len(buffer) for buffer in buffers.values())
    if used + size > int(os.environ.get("FAKE_GPU_MEMORY", str(1 << 30))):
        return cudaError_t.cudaErrorMemoryAllocation, None
    buffer = ctypes.create_string_buffer(size)
    buffers[ctypes.addressof(buffer)] = buffer
    return _OK, ctypes.addressof(buffer)


def cudaFree(devPtr: int) -> tuple[Any, ...]:
    return (_OK,) if buffers.pop(devPtr, None) is not None else (cudaError_t.cudaErrorInvalidValue,)


def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: Any) -> tuple[Any, ...]:
    device = dst if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else src
    assert isinstance(stream, cudaStream_t)
    if device not in buffers or count > len(buffers[device]):
        return (cudaError_t.cudaErrorInvalidValue,)
    ctypes.memmove(dst, src, count)
    return (_OK,)


def cudaStreamSynchronize(stream: Any) -> tuple[Any, ...]:
    assert isinstance(stream, cudaStream_t)
    return (_OK,)
