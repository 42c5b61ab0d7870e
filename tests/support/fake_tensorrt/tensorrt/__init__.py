"""A module with the part of TensorRT's Python API that edged calls, whose engines ONNX Runtime computes.

Classes, methods, arguments and results are those of TensorRT's documentation, 10.x or 11.x by FAKE_TENSORRT. What would
be an error there is one here: flags that 11 does not have, a dynamic batch without a profile, asymmetric codes, a plan
of another version. Plans have a header in JSON, which shows how they were built.

    FAKE_TENSORRT         version, 10.3.0 if it is not set
    FAKE_TENSORRT_FAILS   what a build does: memory, memory_error, kill, crash, exit, hang, nothing
"""

from __future__ import annotations

import enum
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tensorrt import device

__version__ = os.environ.get("FAKE_TENSORRT", "10.3.0")
_RELEASE = int(__version__.split(".")[0])
_MAGIC = b"ftrt"

_WORKER = "service.worker.main"
_quantizes = "pytest" in sys.modules or getattr(sys.modules["__main__"].__spec__, "name", None) == _WORKER
assert "torch" not in sys.modules or _quantizes, "a process that builds or serves must not import torch"


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2


float32 = DataType.FLOAT


def nptype(trt_type: DataType) -> type:
    return {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8}[trt_type]


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class LayerType(enum.Enum):
    CONVOLUTION = 0
    QUANTIZE = 1
    DEQUANTIZE = 2


BuilderFlag = enum.Enum("BuilderFlag", ("FP16", "INT8", "TF32") if _RELEASE < 11 else ("TF32",))  # type: ignore[misc]


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = ILogger.Severity

    def __init__(self, min_severity: ILogger.Severity = ILogger.Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        if severity.value <= self.min_severity.value:
            sys.stderr.write(f"[TRT] [{severity.name[0]}] {msg}\n")


class IHostMemory(bytearray):
    """A buffer, as what TensorRT serializes to."""


class _Layer:
    def __init__(self, operator: str) -> None:
        known = {"QuantizeLinear": LayerType.QUANTIZE, "DequantizeLinear": LayerType.DEQUANTIZE}
        self.type = known.get(operator, LayerType.CONVOLUTION)


class _Tensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class INetworkDefinition:
    def __init__(self) -> None:
        self.model = b""
        self._layers: list[_Layer] = []
        self._inputs: list[_Tensor] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> _Layer:
        return self._layers[index]

    def get_input(self, index: int) -> _Tensor:
        return self._inputs[index]


class _ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        assert logger.made
        self._network, self._errors = network, list[_ParserError]()

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        assert path is None
        try:
            graph = onnx.load_from_string(model).graph
            onnx.checker.check_model(model)
        except Exception as error:
            self._errors.append(_ParserError(f"failed to parse: {type(error).__name__}"))
            return False
        points = {node.input[2] for node in graph.node if node.op_type.endswith("izeLinear") and len(node.input) > 2}
        for tensor in graph.initializer:
            if tensor.name in points and onnx.numpy_helper.to_array(tensor).any():
                self._errors.append(
                    _ParserError(f"Assertion failed: {tensor.name}: only symmetric codes are supported")
                )
                return False
        self._network.model = model
        self._network._layers = [_Layer(node.op_type) for node in graph.node]
        for value in graph.input:
            shape = tuple(
                size.dim_value if size.HasField("dim_value") else -1 for size in value.type.tensor_type.shape.dim
            )
            self._network._inputs.append(_Tensor(value.name, shape))
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(least <= usual <= most for least, usual, most in zip(min, opt, max, strict=True))
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.data)


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.pools: dict[str, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self.timings: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.pools[pool.name] = pool_size

    def set_flag(self, flag: Any) -> None:
        self.flags.add(BuilderFlag(flag).name)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        known = bytes(serialized_timing_cache)
        return None if known and not known.startswith(b"timings ") else ITimingCache(known)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.data and not ignore_mismatch and cache.data.split()[1] != __version__.encode():
            return False
        self.timings = cache
        return True


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert logger.made
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert isinstance(flags, int)
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        error = ILogger.Severity.ERROR
        trouble = os.environ.get("FAKE_TENSORRT_FAILS", "")
        if trouble == "memory":
            self._logger.log(error, "[virtualMemoryBuffer.cpp::resizePhysical] Error Code 2: OutOfMemory (Requested)")
            return None
        if trouble == "nothing":
            self._logger.log(error, "Error Code 10: Internal Error (Could not find any implementation for node conv1)")
            return None
        if trouble == "memory_error":
            raise MemoryError
        if trouble in ("kill", "crash"):
            os.kill(os.getpid(), signal.SIGKILL if trouble == "kill" else signal.SIGSEGV)
        if trouble == "exit":
            os._exit(3)
        while trouble == "hang":
            time.sleep(60)
        image = network.get_input(0)
        if image.shape[0] == -1 and not config.profiles:
            self._logger.log(error, "Error Code 4: API Usage Error (Network has dynamic inputs, but no profile)")
            return None
        assert config.timings is not None
        before = config.timings.data.decode()
        config.timings.data = f"timings {__version__} {int(before.split()[2]) + 1 if before else 1}".encode()
        shapes = config.profiles[0].shapes[image.name] if config.profiles else None
        header = {
            "version": __version__,
            "gpu": device.name(),
            "flags": sorted(config.flags),
            "pools": config.pools,
            "profile": shapes,
            "timings": config.timings.data.decode(),
        }
        text = json.dumps(header).encode()
        return IHostMemory(_MAGIC + len(text).to_bytes(4, "little") + text + network.model)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        static = self._engine.get_tensor_shape(name)
        if static[0] == -1:
            least, _, most = self._engine.get_tensor_profile_shape(name, 0)
            fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        else:
            fits = shape == static
        self._shape = tuple(shape) if fits else None
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape is not None
        shape = self._engine.get_tensor_shape(name)
        return (self._shape[0], *shape[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert isinstance(stream_handle, int)
        if os.environ.get("FAKE_TENSORRT_FAILS") == "execution":
            return False
        assert self._shape is not None
        source, target = self._engine.names
        images = device.read(self._addresses[source], self._shape)
        (outputs,) = self._engine.session.run(None, {source: images})
        device.write(self._addresses[target], outputs)
        return True


class ICudaEngine:
    def __init__(self, header: dict[str, Any], model: bytes) -> None:
        self._header = header
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        given, found = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.names = (given.name, found.name)
        sizes = {value.name: value.shape for value in (given, found)}
        self._shapes = {
            name: tuple(size if isinstance(size, int) else -1 for size in shape) for name, shape in sizes.items()
        }

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self.names[0] else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def get_tensor_dtype(self, name: str) -> DataType:
        assert name in self.names
        return DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [tuple(shape) for shape in self._header["profile"]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.made
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        error = ILogger.Severity.ERROR
        if serialized_engine[:4] != _MAGIC:
            self._logger.log(error, "Error Code 1: Serialization (magic tag does not match)")
            return None
        end = 8 + int.from_bytes(serialized_engine[4:8], "little")
        header = json.loads(serialized_engine[8:end])
        if (header["version"], header["gpu"]) != (__version__, device.name()):
            self._logger.log(error, "Error Code 1: Serialization (the engine was built for another device or version)")
            return None
        return ICudaEngine(header, serialized_engine[end:])
