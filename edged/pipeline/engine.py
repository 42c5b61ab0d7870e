"""Engines that will serve a quantized network, so that it is judged and recorded there and not in torch."""

from __future__ import annotations

import copy
import functools

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from edged.artifacts.engines import open_onnx
from edged.compress import Compressed
from edged.device import CPU, choose_device, on_cpu
from edged.errors import ArchitectureError
from edged.execution.executors import Executor, TorchExecutor
from edged.execution.onnx_model import TARGETS, onnx_model
from edged.execution.saturation import codes_may_saturate
from edged.models.loading import LoadedNetwork
from edged.spec import FLOAT


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


class Engines:
    """Loads a quantized network into engines.

    Args:
        compressed: The quantized network.
        network: The network in full precision.
        threads: Threads of the engines.
        device: Device that torch computes floats on: "cpu", "cuda", or "auto" for a GPU if torch finds one.

    Attributes:
        image: A held-out image as the engines take it [1, channels, size, size].
    """

    def __init__(self, compressed: Compressed, network: LoadedNetwork, threads: int, device: str = "cpu") -> None:
        self._compressed, self._network, self._threads, self._device = compressed, network, threads, device
        self._models: dict[tuple[str, str], bytes | ArchitectureError] = {}  # by target and precision
        cache = compressed.cache
        self.image = cache.batch(cache.held_out[:1]).numpy()

    def load(self, engine: str, precision: str) -> Compressed:
        """Return the network in an engine.

        Args:
            engine: The engine, one of `edged.spec.RUNTIMES` but "auto".
            precision: One of `edged.spec.PRECISIONS`.

        Raises:
            ArchitectureError: It has an operation that the engine does not have.
            ArtifactError: The engine cannot load it.
        """
        target = engine if engine in TARGETS else TARGETS[0]
        plain, model = self.without(precision, target), self._model(precision, target)
        if engine == "torch":
            return plain.varied(engine=EngineNetwork(self._torch(plain)))
        if isinstance(model, ArchitectureError):
            raise model
        wide = precision != FLOAT and codes_may_saturate(self._compressed.quantized)
        return plain.varied(engine=EngineNetwork(open_onnx(model, engine, self._threads, wide_codes=wide)))

    def without(self, precision: str, target: str = TARGETS[0]) -> Compressed:
        """Return the network as torch computes it, with the ONNX model that an engine would load.

        Args:
            precision: One of `edged.spec.PRECISIONS`.
            target: Engine that the model is written for, one of `TARGETS`.
        """
        model = self._model(precision, target)
        onnx = None if isinstance(model, ArchitectureError) else model
        return self._compressed.varied(onnx=onnx, serves_floats=precision == FLOAT)

    def _torch(self, plain: Compressed) -> TorchExecutor:
        device = choose_device(self._device) if plain.precision == FLOAT else CPU
        network = on_cpu(plain.served)
        return TorchExecutor(network if device == CPU else copy.deepcopy(network), device)

    def shared_bytes(self, engine: str) -> int:
        """Return the memory of the network that an engine shares with this process, in bytes."""
        values = self._compressed.model.state_dict().values()
        return sum(value.nbytes for value in values) if engine == "torch" else 0

    def _model(self, precision: str, target: str) -> bytes | ArchitectureError:
        """Return the ONNX model of a precision for an engine, or why there is none."""
        if (target, precision) not in self._models:
            self._models[target, precision] = self._written(precision, target)
        return self._models[target, precision]

    def _written(self, precision: str, target: str) -> bytes | ArchitectureError:
        compressed, network = self._compressed, self._network
        quantized = {name: weight.to(CPU) for name, weight in compressed.quantized.items()}
        ranges = None if precision == FLOAT else compressed.activations
        try:
            model = onnx_model(
                on_cpu(compressed.model), quantized, ranges, network.architecture, network.input, target=target
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
        ArtifactError: The engine does not work.
    """
    if engine == "torch":
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
