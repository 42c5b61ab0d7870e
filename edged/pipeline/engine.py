"""The engine that will serve a quantized network, so that it is judged and recorded there and not in torch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from edged.compress import Compressed
from edged.device import CPU, device_of, on_cpu
from edged.errors import ArchitectureError
from edged.execution.executors import Executor, OnnxExecutor, TorchExecutor
from edged.execution.onnx_model import onnx_model
from edged.heap import ENGINE_LOADING
from edged.memory import give_back_free_memory, present_bytes
from edged.models.loading import LoadedNetwork

SMALL_BYTES = 64 << 20  # less than a plan's accuracy


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


def for_service(compressed: Compressed, network: LoadedNetwork, memory_limit: int | None = None) -> Compressed:
    """Return a quantized network with its ONNX model, computed by ONNX Runtime from now on.

    Args:
        compressed: The quantized network.
        network: The network in full precision.
        memory_limit: Bytes of resident memory that this process may take; None for what the quantization was planned to
            take. Where an engine in float does not fit next to the networks, torch goes on computing: its outputs
            differ by rounding only.

    Returns:
        The quantized network; unchanged where only torch can compute it, as a head with an activation that the
        execution graph does not have.

    Raises:
        ArchitectureError: Activations are quantized, and the network has an operation that the graph does not have.
    """
    quantized = {name: weight.to(CPU) for name, weight in compressed.quantized.items()}
    try:
        model = onnx_model(
            on_cpu(compressed.model), quantized, compressed.activations, network.architecture, network.input
        )
    except ArchitectureError:
        if compressed.activations is not None:
            raise
        return compressed
    data: bytes = model.SerializeToString()
    del model
    give_back_free_memory()
    if compressed.activations is None and not _has_room(compressed, memory_limit):
        return dataclasses.replace(compressed, onnx=data)
    engine = EngineNetwork(OnnxExecutor(data, torch.get_num_threads()))
    return dataclasses.replace(compressed, onnx=data, engine=engine)


def _has_room(compressed: Compressed, memory_limit: int | None) -> bool:
    """Return whether ONNX Runtime can load the network in float within the limit, or else within the plan."""
    needed = ENGINE_LOADING * sum(4 * weight.codes.numel() for weight in compressed.quantized.values())
    if memory_limit is None and device_of(compressed.full) == CPU:  # a plan for a GPU is of the GPU's memory
        memory_limit = compressed.plan.peak_bytes
    return memory_limit is None or needed < SMALL_BYTES or present_bytes(CPU) + needed <= memory_limit


def executor_of(compressed: Compressed) -> Executor:
    """Return the engine that computes a quantized network in service."""
    if isinstance(compressed.engine, EngineNetwork):
        return compressed.engine.executor
    return TorchExecutor(on_cpu(compressed.served))
