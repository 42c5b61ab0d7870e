"""Placement of quantization: the values of a graph that integer engines carry as codes.

    conv -> relu -> [codes]          one integer kernel: the value between the two never exists
    conv -> [codes] -> silu -> [codes]
    [codes] -> max-pool, resize      the same codes, so the same grid

A value is carried as codes if an operation that computes on integers reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edged.execution.graph import (
    ACTIVATIONS,
    Add,
    Affine,
    Conv,
    GlobalMaxPool,
    Graph,
    Linear,
    MaxPool,
    Node,
    Predictions,
    Relu,
    Resize,
)

PASSING = (MaxPool, GlobalMaxPool, Resize)  # operations whose outputs are some of their inputs' values


@dataclass(frozen=True)
class Placement:
    """The values of a graph that are carried as codes.

    Attributes:
        graph: The graph.
        owners: For each value that is carried as codes, the value whose grid it has: itself, or the value that it
            repeats.
        float_layers: Convolutions and linear layers that compute in float.
    """

    graph: Graph
    owners: Mapping[str, str]
    float_layers: frozenset[str]

    @property
    def values(self) -> list[str]:
        """The values with a grid of their own, in order of execution."""
        return [name for name, owner in self.owners.items() if name == owner]


def head_parameters(graph: Graph) -> list[str]:
    """Return the names of the weights of a detector's output layers; none for a classifier.

    Their outputs are the network's own, in float, and small errors of a box's size or class count in full.
    """
    heads = {name for node in graph.nodes if isinstance(node, Predictions) for name in node.inputs}
    return [node.weight.parameter for node in graph.weighted() if node.name in heads]


def place_nothing(graph: Graph) -> Placement:
    """Return the placement of a graph that computes in float."""
    return Placement(graph, {}, frozenset(node.name for node in graph.weighted()))


def place(graph: Graph, float_layers: Collection[str] = (), *, float_activations: bool = False) -> Placement:
    """Choose the values that are carried as codes.

    Args:
        graph: The graph.
        float_layers: Names of the state dict's weights (such as "fc.weight") whose layers compute in float, from
            inputs that may be codes.
        float_activations: Whether activations other than ReLU (SiLU, ...) compute in float, from the layer's float
            outputs.
    """
    in_float = {node.name for node in graph.weighted() if node.weight.parameter in float_layers}
    readers, producers = graph.readers(), graph.producers()

    def computes_on_codes(node: Node) -> bool:
        if isinstance(node, ACTIVATIONS) and not isinstance(node, Relu):
            return not float_activations
        return node.name not in in_float and not isinstance(node, Predictions | Affine)

    owners: dict[str, str] = {}
    for name in (graph.input, *producers):
        node, reading = producers.get(name), readers[name]
        absorbed = isinstance(node, Conv | Linear | Add) and [type(reader) for reader in reading] == [Relu]
        if name == graph.output or absorbed or not any(computes_on_codes(reader) for reader in reading):
            continue
        if isinstance(node, PASSING) and node.inputs[0] in owners:
            owners[name] = owners[node.inputs[0]]
        else:
            owners[name] = name
    return Placement(graph, owners, frozenset(in_float))
