"""Placement of quantization for TensorRT, which fuses other operations than CPU engines do.

[codes] -> conv -> relu -> [codes]     inputs of layers are quantized, their outputs are not
conv ------> add                       of a sum only the branch that comes from further up,
[codes] ---^                           so that the convolution takes in the addition
conv -> silu -> [codes]                activations compute in float
[codes] -> concat -> [codes]           all with one scale, so that it only copies
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edged.errors import ArtifactError
from edged.execution.graph import Add, Concat, Graph
from edged.execution.grids import ActivationGrid, ActivationScheme, Range
from edged.execution.placement import PASSING, Placement
from edged.execution.quantization import ActivationQuantization

COPYING = (*PASSING, Concat)


def place_for_tensorrt(
    placement: Placement, activations: ActivationQuantization
) -> tuple[Placement, dict[str, ActivationGrid]]:
    """Choose the values that TensorRT carries as codes, and their symmetric grids.

    Args:
        placement: The values that CPU engines carry as codes; TensorRT carries some of them.
        activations: Ranges of `placement.values`.

    Returns:
        The placement, and the grid of each value that owns one.

    Raises:
        ArtifactError: Weights are asymmetric.
    """
    _require_symmetric(placement.graph)
    carried = _carried(placement)
    leaders = _leaders(placement.graph, carried)
    ranges: dict[str, Range] = {}
    for name in carried:
        low, high = activations.ranges[placement.owners[name]]
        least, most = ranges.get(leaders[name], (0.0, 0.0))
        ranges[leaders[name]] = (min(low, least), max(high, most))
    quantization = dataclasses.replace(activations, ranges=ranges)
    owners = {name: leaders[name] for name in carried}
    return Placement(placement.graph, owners, placement.float_layers), quantization.grids(ActivationScheme.SYMMETRIC)


def _require_symmetric(graph: Graph) -> None:
    for node in graph.weighted():
        quantized = node.weight.quantized
        if (
            node.weight.parameter
            and quantized is not None
            and bool((quantized.zero_point != 1 << quantized.bits - 1).any())
        ):
            raise ArtifactError(
                f"weight {node.weight.parameter!r} is asymmetric, which TensorRT does not take;"
                " quantize the checkpoint again with --scheme symmetric"
            )


def _carried(placement: Placement) -> list[str]:
    """Return the values that are carried as codes, in order of execution."""
    graph, wanted = placement.graph, set[str]()
    for layer in graph.weighted():
        if layer.name not in placement.float_layers:
            wanted.add(layer.inputs[0])
    for node in graph.nodes:
        if isinstance(node, Add) and not wanted & set(node.inputs):
            wanted.add(node.inputs[1])  # the shortcut, where it has a layer of its own
    _spread(graph, wanted)
    wanted &= placement.owners.keys()
    return [name for name in placement.owners if name in wanted]


def _spread(graph: Graph, wanted: set[str]) -> None:
    """Add the values around operations that only copy, which run on codes if all of their values are codes."""
    while True:
        before = len(wanted)
        for node in graph.nodes:
            if isinstance(node, PASSING) and node.inputs[0] in wanted:
                wanted.add(node.name)
            elif isinstance(node, Concat) and node.name in wanted:
                wanted.update(node.inputs)
        if len(wanted) == before:
            return


def _leaders(graph: Graph, carried: list[str]) -> Mapping[str, str]:
    """Return for each value the first of those that must have its scale."""
    leaders = {name: name for name in carried}

    def first(name: str) -> str:
        while leaders[name] != name:
            name = leaders[name]
        return name

    for node in graph.nodes:
        if isinstance(node, COPYING) and node.name in leaders:
            same = [first(name) for name in (*node.inputs, node.name) if name in leaders]
            earliest = min(same, key=carried.index)
            leaders.update(dict.fromkeys(same, earliest))
    return {name: first(name) for name in carried}
