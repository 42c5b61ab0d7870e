from __future__ import annotations

import torch

from edged.execution.graph import Add, Conv, Graph, Linear, Relu, Weight

WEIGHT = Weight("conv.weight", torch.zeros(3, 3, 1, 1))
GRAPH = Graph(
    "x",
    3,
    (
        Conv("conv", ("x",), WEIGHT, torch.zeros(3)),
        Relu("relu", ("conv",)),
        Add("sum", ("relu", "x")),
        Linear("fc", ("sum",), Weight("fc.weight", torch.zeros(2, 3)), torch.zeros(2)),
    ),
    "fc",
)


def test_readers_of_each_value() -> None:
    conv, relu, add, linear = GRAPH.nodes
    assert GRAPH.readers() == {"x": [conv, add], "conv": [relu], "relu": [add], "sum": [linear], "fc": []}


def test_producers_and_layers() -> None:
    assert [*GRAPH.producers()] == ["conv", "relu", "sum", "fc"]
    assert [node.weight.parameter for node in GRAPH.weighted()] == ["conv.weight", "fc.weight"]
