"""TensorRT as an engine. Imports TensorRT and a package for CUDA only when an engine is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.errors import EngineError
from edged.execution.cuda_memory import DeviceMemory, device_memory
from edged.execution.executors import HALF_TOLERANCE
from edged.execution.tensorrt_engine import (
    BuildLimits,
    BuiltEngine,
    Sidecar,
    build_engine,
    check_engine,
    require_tensorrt,
)

Floats = npt.NDArray[np.float32]

REBUILT_TOLERANCE = 0.1  # relative: another build may choose other kernels, which round to other codes


class TensorRtExecutor:
    """Computes a TensorRT engine on a GPU.

    Args:
        plan: Path of the plan; its sidecar is next to it.
        threads: Threads that a generation is given; the engine uses none of them.
        memory: Memory of the GPU; None for the package that is installed.

    Raises:
        EngineError: The engine does not fit this device, or cannot be loaded.
        DeviceError: The GPU cannot be used.
        MemoryLimitError: The engine does not fit into the GPU's memory.
    """

    name = "tensorrt"

    def __init__(self, plan: Path, threads: int, memory: DeviceMemory | None = None) -> None:
        sidecar = Sidecar.read(plan.with_suffix(".json"))
        data = check_engine(plan, sidecar)
        self._trt = require_tensorrt()
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(data)
        context = None if self._engine is None else self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"TensorRT cannot load {plan}; delete it, and the engine is built anew")
        self._context = context
        self._memory = device_memory() if memory is None else memory
        self._input, self._output = self._names()
        self._least, self._most = self._batches()
        self._buffers: dict[str, tuple[int, int]] = {}
        self.threads = threads
        self.tolerance = REBUILT_TOLERANCE if sidecar.integer else HALF_TOLERANCE

    def run(self, images: Floats) -> Floats:
        """Compute the outputs of images; more than the engine takes in one call are computed in several.

        Raises:
            MemoryLimitError: The GPU's memory is full.
            EngineError: The computation failed.
        """
        parts = [self._run(images[start : start + self._most]) for start in range(0, len(images), self._most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: Floats) -> Floats:
        count = len(images)
        if count < self._least:  # an engine for a fixed number of images
            images = np.concatenate([images, np.zeros((self._least - count, *images.shape[1:]), np.float32)])
        given = np.ascontiguousarray(images, self._type(self._input))
        if not self._context.set_input_shape(self._input, given.shape):
            raise EngineError(f"the engine does not take images of shape {list(given.shape)}")
        outputs = np.empty(tuple(self._context.get_tensor_shape(self._output)), self._type(self._output))
        for name, array in ((self._input, given), (self._output, outputs)):
            self._context.set_tensor_address(name, self._buffer(name, array.nbytes))
        self._memory.upload(self._buffers[self._input][0], given)
        if not self._context.execute_async_v3(self._memory.stream):
            raise EngineError("TensorRT did not compute the images; its message is in the log")
        self._memory.download(outputs, self._buffers[self._output][0])
        self._memory.synchronize()
        found: Floats = outputs[:count].astype(np.float32, copy=False)
        return found

    def _buffer(self, name: str, size: int) -> int:
        """Return the address of the buffer of a tensor, which is made larger where it is too small."""
        address, available = self._buffers.get(name, (0, 0))
        if size > available:
            if available:
                self._memory.free(self._buffers.pop(name)[0])
            address = self._memory.allocate(size)
            self._buffers[name] = address, size
        return address

    def _names(self) -> tuple[str, str]:
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise EngineError(f"the engine has inputs {inputs} and outputs {outputs}; it must have one of each")
        return inputs[0], outputs[0]

    def _batches(self) -> tuple[int, int]:
        """Return the least and the largest number of images of one call."""
        fixed = self._engine.get_tensor_shape(self._input)[0]
        if fixed != -1:
            return fixed, fixed
        least, _, most = self._engine.get_tensor_profile_shape(self._input, 0)
        return least[0], most[0]

    def _type(self, name: str) -> Any:
        return self._trt.nptype(self._engine.get_tensor_dtype(name))


def open_engine(model: bytes, folder: Path, threads: int, limits: BuildLimits | None = None) -> TensorRtExecutor:
    """Load the engine of a model; build it first if there is none that fits this device.

    Args:
        model: ONNX model, see `build_engine`.
        folder: Folder of the engines.
        threads: Threads that a generation is given.
        limits: Limits of a build; None for the defaults.

    Raises:
        MemoryLimitError: The engine takes more memory than there is.
        EngineError: There is no engine, and it cannot be built.
        DeviceError: The GPU cannot be used.
        StateError: The folder cannot be written.
    """
    built: BuiltEngine = build_engine(model, folder, limits or BuildLimits())
    try:
        return TensorRtExecutor(built.plan, threads)
    except EngineError:
        if not built.reused:
            raise
    built.plan.with_suffix(".json").unlink(missing_ok=True)  # its digest is right, and yet it cannot be loaded
    return TensorRtExecutor(build_engine(model, folder, limits or BuildLimits()).plan, threads)
