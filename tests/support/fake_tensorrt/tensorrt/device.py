"""The memory of the GPU that is not there: addresses of the CPU's memory."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np


def name() -> str:
    return os.environ.get("FAKE_GPU", "Orin")


def read(address: int, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * 4
    return np.frombuffer(ctypes.string_at(address, size), np.float32).reshape(shape)


def write(address: int, values: Any) -> None:
    data = np.ascontiguousarray(values, np.float32).tobytes()
    ctypes.memmove(address, data, len(data))
