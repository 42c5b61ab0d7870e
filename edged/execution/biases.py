"""Weights whose biases fit the accumulator.

An engine adds round(bias / (x_scale w_scale)) to its 32-bit sums. Where a channel's weights are tiny and its bias is
not, that number would not fit. Such a channel is the constant of its bias, give or take a part in 2**30: its weights
are rounded to a coarser scale, for which it does.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from edged.errors import ArtifactError
from edged.execution.graph import Graph, Node, Weight, Weighted
from edged.execution.grids import Grids
from edged.execution.placement import Placement
from edged.quant.grid import QuantizedWeight

MOST_STEPS = 2.0**30


def with_representable_biases(placement: Placement, grids: Grids) -> Placement:
    """Return the placement with coarser weights in the channels whose bias does not fit 32 bits.

    Args:
        placement: The values that are carried as codes. Not modified.
        grids: Grid of each of `placement.values`.

    Raises:
        ArtifactError: A weight has a negative scale.
    """

    def fitted(node: Node) -> Node:
        owner = placement.owners.get(node.inputs[0]) if node.inputs else None
        if not isinstance(node, Weighted) or owner is None or node.name in placement.float_layers:
            return node
        if node.weight.quantized is None:
            return node
        weight = _coarser(node.weight, node.weight.quantized, node.bias, grids[owner].scale)
        return dataclasses.replace(node, weight=weight)

    graph = placement.graph
    nodes = tuple(fitted(node) for node in graph.nodes)
    return dataclasses.replace(placement, graph=Graph(graph.input, graph.channels, nodes, graph.output))


def _coarser(weight: Weight, quantized: QuantizedWeight, bias: Tensor, input_scale: float) -> Weight:
    least = bias.double().abs() / (input_scale * MOST_STEPS)
    scale = quantized.scale.double()
    if bool((scale < 0).any()):
        raise ArtifactError(
            f"weight {weight.parameter!r} has negative scales, which no integer engine takes;"
            " quantize the checkpoint again with activation bits"
        )
    small = (scale < least) | (scale <= 0)
    if not bool(small.any()):
        return weight
    raised = torch.where(small, least.clamp_min(torch.finfo(torch.float32).tiny * 2), scale)
    zero = quantized.zero_point.double()[:, None]
    codes = (((quantized.codes.double() - zero) * (scale / raised)[:, None]).round() + zero).to(torch.uint8)
    fitted = dataclasses.replace(
        quantized, codes=torch.where(small[:, None], codes, quantized.codes), scale=raised.float()
    )
    return dataclasses.replace(weight, quantized=fitted, values=fitted.decode())
