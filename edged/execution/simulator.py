"""Simulation of a graph in torch: in float32, or in whole numbers as engines do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edged.execution import graph as ops
from edged.execution.graph import Graph, Node
from edged.execution.grids import Grids
from edged.execution.integer_layer import IntegerLayer
from edged.execution.placement import Placement
from edged.models.cluster_affine import transformed

Values = Mapping[str, Tensor]


def run_float(graph: Graph, images: Tensor) -> Tensor:
    """Compute a graph in float32, with decoded weights.

    Args:
        graph: The graph.
        images: Inputs [batch, channels, height, width]. Not modified.
    """
    return _run(graph, images, _compute, {}, {})


def run_rounded(placement: Placement, grids: Grids, images: Tensor) -> Tensor:
    """Compute a graph in float32 with values rounded to their grids, in a third of the time of a `Simulator`.

    Layers sum in float32, so a value next to the middle between two codes may get the other one.

    Args:
        placement: The values that are carried as codes.
        grids: Grid of each of `placement.values`.
        images: Inputs [batch, channels, height, width]. Not modified.
    """

    def compute(node: Node, values: Values) -> Tensor:
        return _of_codes(node, values, placement, grids)

    return _run(placement.graph, images, compute, placement.owners, grids)


class Simulator:
    """A graph as an integer engine computes it: whole numbers are multiplied and summed, then scaled to codes.

        sum = sum over inputs of (x - x_zero) (w - w_zero) + round(bias / (x_scale w_scale))
        code = clamp(round(sum x_scale w_scale / y_scale) + y_zero)

    Sums are exact, so outputs do not depend on the number of threads or on the batch, unless layers compute in float.

    Args:
        placement: The values that are carried as codes.
        grids: Grid of each of `placement.values`.
    """

    def __init__(self, placement: Placement, grids: Grids) -> None:
        self._placement, self._grids = placement, grids
        self._layers: dict[str, IntegerLayer] = {}
        for node in placement.graph.weighted():
            owner = placement.owners.get(node.inputs[0])
            if owner is not None and node.name not in placement.float_layers:
                self._layers[node.name] = IntegerLayer.of(node, grids[owner])

    def run(self, images: Tensor) -> Tensor:
        """Compute the output.

        Args:
            images: Inputs [batch, channels, height, width]. Not modified.
        """
        return _run(self._placement.graph, images, self._compute, self._placement.owners, self._grids)

    def _compute(self, node: Node, values: Values) -> Tensor:
        if node.name in self._layers:
            return self._layers[node.name](values[node.inputs[0]])
        return _of_codes(node, values, self._placement, self._grids)


def _of_codes(node: Node, values: Values, placement: Placement, grids: Grids) -> Tensor:
    owner = placement.owners.get(node.inputs[0])
    if isinstance(node, ops.Silu) and owner is not None and placement.rounds_gate(node):
        x = values[node.inputs[0]]
        return x * grids[owner].of_gate().nearest(x.sigmoid())
    return _compute(node, values)


def _run(
    graph: Graph, images: Tensor, compute: Callable[[Node, Values], Tensor], owners: Mapping[str, str], grids: Grids
) -> Tensor:
    last_reader = {name: node.name for node in graph.nodes for name in node.inputs}
    values: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        values[name] = grids[owners[name]].nearest(value) if name in owners else value

    keep(graph.input, images)
    for node in graph.nodes:
        keep(node.name, compute(node, values))
        for name in node.inputs:
            if last_reader[name] == node.name and name != graph.output:
                values.pop(name, None)
    return values[graph.output]


def _compute(node: Node, values: Values) -> Tensor:
    x = values[node.inputs[0]]
    if isinstance(node, ops.Conv):
        return functional.conv2d(x, node.weight.values, node.bias, node.stride, node.padding, groups=node.groups)
    if isinstance(node, ops.Linear):
        return functional.linear(x, node.weight.values, node.bias)
    if isinstance(node, ops.Add):
        return x + values[node.inputs[1]]
    if isinstance(node, ops.Concat):
        return torch.cat([values[name] for name in node.inputs], 1)
    if isinstance(node, ops.Predictions):
        maps = (values[name].permute(0, 2, 3, 1) for name in node.inputs)
        return torch.cat([rows.reshape(len(rows), -1, node.outputs) for rows in maps], 1)
    return _of_one_value(node, x)


def _of_one_value(node: Node, x: Tensor) -> Tensor:
    if isinstance(node, ops.MaxPool):
        return functional.max_pool2d(x, node.kernel, node.stride, node.padding)
    if isinstance(node, ops.GlobalAveragePool):
        return x.double().mean((2, 3)).float()  # in any order the same
    if isinstance(node, ops.GlobalMaxPool):
        return x.amax((2, 3))
    if isinstance(node, ops.Affine):
        return x * node.factor + node.shift
    if isinstance(node, ops.ClusterAffine):
        return transformed(x, node.centroids, node.gain, node.shift)
    if isinstance(node, ops.Resize):
        return functional.interpolate(x, scale_factor=node.factor, mode="nearest")
    if isinstance(node, ops.LeakyRelu):
        return functional.leaky_relu(x, node.slope)
    return _ACTIVATIONS[type(node)](x)


_ACTIVATIONS: Mapping[type[Node], Callable[[Tensor], Tensor]] = {
    ops.Relu: torch.relu,
    ops.HardSwish: functional.hardswish,
    ops.Silu: functional.silu,
    ops.Gelu: functional.gelu,
    ops.Tanh: torch.tanh,
    ops.Sigmoid: torch.sigmoid,
}
