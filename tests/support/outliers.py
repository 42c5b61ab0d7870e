"""Networks that floats compute well and integers badly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from edged.compress import Compressed
from edged.execution.build import build_graph
from edged.execution.placement import layers_to_keep, place

_CHANNEL = {"layer1": 0, "layer2": 8, "layer3": 24}  # of the stem's first one, in the output of each layer


def write_outlier(source: Path, target: Path, value: float = 1e5) -> None:
    """Write a checkpoint one of whose channels has a huge value that no weight reads.

    Integers have one scale for all channels of a value, so the other channels round to nothing.

    Args:
        source: Checkpoint of a CIFAR ResNet-20 with shortcuts that pad, a plain state dict.
        target: File to write.
        value: Value of that channel, from the stem to the pooling.
    """
    state = torch.load(source, weights_only=True)
    state["bn1.weight"][0], state["bn1.bias"][0] = 0, value
    read = 0
    for layer, channel in _CHANNEL.items():
        for block in range(3):
            state[f"{layer}.{block}.conv1.weight"][:, read] = 0
            read = channel
    state["linear.weight"][:, read] = 0
    torch.save(state, target)


def with_clipped_inputs(compressed: Compressed, *layers: str) -> Compressed:
    """Return a network whose ranges of the values that some layers read are far too narrow."""
    assert compressed.activations is not None
    needed = layers_to_keep(place(build_graph(compressed.model, compressed.quantized)))
    values = [name for name, readers in needed.items() if readers & set(layers)]
    ranges = {
        name: (low / 50, high / 50) if name in values else (low, high)
        for name, (low, high) in compressed.activations.ranges.items()
    }
    return compressed.varied(activations=dataclasses.replace(compressed.activations, ranges=ranges))
