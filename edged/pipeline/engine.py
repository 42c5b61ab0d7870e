"""Engines that will serve a quantized network, so that it is judged and recorded there and not in torch."""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from edged.artifacts.engines import open_onnx
from edged.compress import Compressed
from edged.device import CPU, choose_device, on_cpu
from edged.errors import ArchitectureError, EngineError
from edged.execution.executors import Executor, TorchExecutor
from edged.execution.onnx_model import TARGETS, onnx_model
from edged.execution.quantization import ActivationQuantization
from edged.execution.saturation import codes_may_saturate
from edged.execution.tensorrt_engine import BuildLimits, require_tensorrt
from edged.execution.tensorrt_executor import open_engine
from edged.models.loading import LoadedNetwork
from edged.spec import FLOAT, INTEGER


class EngineNetwork(nn.Module):
    """A network that an engine computes, with torch's tensors.

    Args:
        executor: The engine.
    """

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self.executor = executor

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to the network's outputs."""
        return torch.from_numpy(self.executor.run(images.contiguous().numpy()))


class _Numbers(NamedTuple):
    """What an ONNX model of a network depends on.

    Attributes:
        target: Engine that it is written for, one of `TARGETS`.
        precision: One of `edged.spec.PRECISIONS`.
        silu: Numbers that SiLU computes with where the precision is integer.
    """

    target: str
    precision: str
    silu: str


@dataclass(frozen=True)
class Building:
    """How engines of TensorRT are built.

    Attributes:
        folder: Folder of the engines, see `edged.execution.tensorrt_engine`; None where there are none.
        limits: Limits of building one.
    """

    folder: Path | None = None
    limits: BuildLimits = field(default_factory=BuildLimits)


class Engines:
    """Loads a quantized network into engines.

    Args:
        compressed: The quantized network.
        network: The network in full precision.
        threads: Threads of the engines.
        device: Device that torch computes floats on: "cpu", "cuda", or "auto" for a GPU if torch finds one.
        building: How engines of TensorRT are built.

    Attributes:
        image: A held-out image as the engines take it [1, channels, size, size].
    """

    def __init__(
        self,
        compressed: Compressed,
        network: LoadedNetwork,
        threads: int,
        device: str = "cpu",
        building: Building = Building(),
    ) -> None:
        self._compressed, self._network, self._threads = compressed, network, threads
        self._device, self._building = device, building
        self._models: dict[_Numbers, bytes | ArchitectureError] = {}
        cache = compressed.cache
        self.image = cache.batch(cache.held_out[:1]).numpy()

    def of(self, compressed: Compressed) -> Engines:
        """Return the same engines for the network with other layers in float."""
        return Engines(compressed, self._network, self._threads, self._device, self._building)

    def load(self, engine: str, precision: str, silu: str = INTEGER) -> Compressed:
        """Return the network in an engine.

        Args:
            engine: The engine, one of `edged.spec.RUNTIMES` but "auto".
            precision: One of `edged.spec.PRECISIONS`.
            silu: Numbers that SiLU computes with where the precision is integer, another one of them.

        Raises:
            ArchitectureError: It has an operation that the engine does not have.
            ArtifactError: The engine cannot load it.
            EngineError: TensorRT cannot build it.
            MemoryLimitError: It does not fit into the GPU's memory, or building it takes more memory than there is.
            DeviceError: The GPU cannot be used.
        """
        numbers = self._numbers(engine, precision, silu)
        plain, model = self._without(numbers), self._model(numbers)
        if engine == "torch":
            return plain.varied(engine=EngineNetwork(self._torch(plain)))
        if isinstance(model, ArchitectureError):
            raise model
        if engine == "tensorrt":
            return plain.varied(engine=EngineNetwork(self._tensorrt(model)))
        wide = precision != FLOAT and codes_may_saturate(self._compressed.quantized)
        return plain.varied(engine=EngineNetwork(open_onnx(model, engine, self._threads, wide_codes=wide)))

    def write(self, engine: str, precision: str, silu: str = INTEGER) -> None:
        """Write the ONNX model that `load` takes with these arguments; memory for that is none that the engine takes.

        Args:
            engine: The engine, one of `edged.spec.RUNTIMES` but "auto".
            precision: One of `edged.spec.PRECISIONS`.
            silu: Numbers that SiLU computes with where the precision is integer, another one of them.
        """
        self._model(self._numbers(engine, precision, silu))

    def without(self, precision: str) -> Compressed:
        """Return the network as torch computes it, with the ONNX model that an engine would load.

        Args:
            precision: One of `edged.spec.PRECISIONS`.
        """
        return self._without(_Numbers(TARGETS[0], precision, INTEGER))

    def _numbers(self, engine: str, precision: str, silu: str) -> _Numbers:
        return _Numbers(engine if engine in TARGETS else TARGETS[0], precision, silu)

    def _without(self, numbers: _Numbers) -> Compressed:
        model = self._model(numbers)
        onnx = None if isinstance(model, ArchitectureError) else model
        activations = self._activations(numbers.silu)
        return self._compressed.varied(onnx=onnx, activations=activations, serves_floats=numbers.precision == FLOAT)

    def _activations(self, silu: str) -> ActivationQuantization | None:
        activations = self._compressed.activations
        return None if activations is None else dataclasses.replace(activations, silu=silu)

    def _torch(self, plain: Compressed) -> TorchExecutor:
        device = choose_device(self._device) if plain.precision == FLOAT else CPU
        network = on_cpu(plain.served)
        return TorchExecutor(network if device == CPU else copy.deepcopy(network), device)

    def _tensorrt(self, model: bytes) -> Executor:
        if self._building.folder is None:
            raise EngineError("there is no folder for TensorRT's engines; another engine serves")
        return open_engine(model, self._building.folder, self._threads, self._building.limits)

    def shared_bytes(self, engine: str) -> int:
        """Return the memory of the network that an engine shares with this process, in bytes."""
        values = self._compressed.model.state_dict().values()
        return sum(value.nbytes for value in values) if engine == "torch" else 0

    def _model(self, numbers: _Numbers) -> bytes | ArchitectureError:
        """Return the ONNX model, or why there is none."""
        if numbers not in self._models:
            self._models[numbers] = self._written(numbers)
        return self._models[numbers]

    def _written(self, numbers: _Numbers) -> bytes | ArchitectureError:
        compressed, network = self._compressed, self._network
        quantized = {name: weight.to(CPU) for name, weight in compressed.quantized.items()}
        ranges = None if numbers.precision == FLOAT else self._activations(numbers.silu)
        try:
            model = onnx_model(
                on_cpu(compressed.model), quantized, ranges, network.architecture, network.input, target=numbers.target
            )
        except ArchitectureError as error:
            return error
        data: bytes = model.SerializeToString()
        return data


@functools.cache
def start_engine(engine: str) -> None:
    """Compute a tiny model once, so that the engine has taken the memory that it takes for itself.

    Args:
        engine: The engine, one of `edged.spec.RUNTIMES` but "auto".

    Raises:
        ArtifactError, EngineError: The engine does not work.
    """
    if engine == "torch":
        return
    if engine == "tensorrt":  # even a tiny model takes long to build
        require_tensorrt()
        return
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "start", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    open_onnx(model.SerializeToString(), engine, 1).run(np.zeros((1, 1, 1, 1), np.float32))


def executor_of(compressed: Compressed) -> Executor:
    """Return the engine that computes a quantized network in service."""
    if isinstance(compressed.engine, EngineNetwork):
        return compressed.engine.executor
    return TorchExecutor(on_cpu(compressed.served))
