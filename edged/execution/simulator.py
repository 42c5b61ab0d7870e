"""Simulation of a graph in torch: in float32, with values rounded to their grids, or in whole numbers as engines do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edged.execution import graph as ops
from edged.execution.graph import Graph, Node
from edged.execution.grids import ActivationGrid, Grids
from edged.execution.placement import Placement

Values = Mapping[str, Tensor]


def run_float(graph: Graph, images: Tensor) -> Tensor:
    """Compute a graph in float32, with decoded weights.

    Args:
        graph: The graph.
        images: Inputs [batch, channels, height, width]. Not modified.
    """
    return _run(graph, images, _compute, {}, {})


def run_rounded(placement: Placement, grids: Grids, images: Tensor) -> Tensor:
    """Compute a graph in float32 with each value that is carried as codes rounded to its grid.

    The result differs from integer execution by rounding only, and this is several times faster than `run_integer`.

    Args:
        placement: The values that are carried as codes.
        grids: Grid of each of `placement.values`.
        images: Inputs [batch, channels, height, width]. Not modified.
    """

    def compute(node: Node, values: Values) -> Tensor:
        gated = _gated(node, values, placement, grids)
        return _compute(node, values) if gated is None else gated

    return _run(placement.graph, images, compute, placement.owners, grids)


def run_integer(placement: Placement, grids: Grids, images: Tensor) -> Tensor:
    """Compute a graph as an integer engine does: whole numbers are multiplied and summed, then scaled to codes.

        accumulator = sum (x - x_zero) w + round(bias / (x_scale w_scale))
        code = clamp(round(accumulator x_scale w_scale / y_scale) + y_zero)

    Args:
        placement: The values that are carried as codes.
        grids: Grid of each of `placement.values`.
        images: Inputs [batch, channels, height, width]. Not modified.
    """

    def compute(node: Node, values: Values) -> Tensor:
        owner = placement.owners.get(node.inputs[0])
        if isinstance(node, ops.Conv | ops.Linear) and node.name not in placement.float_layers and owner is not None:
            return _integer_layer(node, values[node.inputs[0]], grids[owner])
        gated = _gated(node, values, placement, grids)
        return _compute(node, values) if gated is None else gated

    return _run(placement.graph, images, compute, placement.owners, grids)


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


def _gated(node: Node, values: Values, placement: Placement, grids: Grids) -> Tensor | None:
    """Compute a SiLU on codes: engines round its sigmoid, too. None for any other operation."""
    owner = placement.owners.get(node.inputs[0])
    if not isinstance(node, ops.Silu) or owner is None:
        return None
    x = values[node.inputs[0]]
    return x * grids[owner].of_gate().nearest(x.sigmoid())


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
    if isinstance(node, ops.MaxPool):
        return functional.max_pool2d(x, node.kernel, node.stride, node.padding)
    if isinstance(node, ops.GlobalAveragePool):
        return x.mean((2, 3))
    if isinstance(node, ops.Resize):
        return functional.interpolate(x, scale_factor=node.factor, mode="nearest")
    if isinstance(node, ops.Predictions):
        maps = (values[name].permute(0, 2, 3, 1) for name in node.inputs)
        return torch.cat([rows.reshape(len(rows), -1, node.outputs) for rows in maps], 1)
    return _activate(node, x)


def _activate(node: Node, x: Tensor) -> Tensor:
    if isinstance(node, ops.Relu):
        return x.relu()
    if isinstance(node, ops.LeakyRelu):
        return functional.leaky_relu(x, node.slope)
    if isinstance(node, ops.HardSwish):
        return functional.hardswish(x)
    if isinstance(node, ops.Silu):
        return functional.silu(x)
    raise TypeError(f"the simulator has no rule for {type(node).__name__}")


def _integer_layer(node: ops.Weighted, x: Tensor, grid: ActivationGrid) -> Tensor:
    """Compute a layer's real outputs in whole numbers; float64 holds all of them exactly."""
    quantized = node.weight.quantized
    assert quantized is not None  # noqa: S101  # the placement has no other layer on codes
    codes = (x.double() / grid.scale).round()
    whole = quantized.codes.double() - quantized.zero_point.double()[:, None]
    scale = grid.scale * quantized.scale.double()
    bias = (node.bias.double() / scale).nan_to_num(0.0, 0.0, 0.0).round()
    if isinstance(node, ops.Linear):
        return (functional.linear(codes, whole, bias) * scale).float()
    weight = whole.reshape(quantized.shape)
    sums = functional.conv2d(codes, weight, bias, node.stride, node.padding, groups=node.groups)
    return (sums * scale[:, None, None]).float()
