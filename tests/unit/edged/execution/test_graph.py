from __future__ import annotations

import onnx
import pytest
import torch

from edged.execution.graph import Add, Conv, Graph, Linear, Relu, Weight
from tests.support.executions import executed

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


@pytest.mark.parametrize("name", ["option A", "resnet18", "yolov5", "focus"])
def test_sides_are_those_of_the_computed_values(name: str) -> None:
    done = executed(name)
    shapes = {value.name: value for value in onnx.shape_inference.infer_shapes(done.onnx(batch=1)).graph.value_info}
    compared = 0
    for value, side in done.placement.graph.sides(32).items():
        found = shapes.get(f"{value}.dequantized")
        if found is not None and value != done.placement.graph.input:
            assert [d.dim_value for d in found.type.tensor_type.shape.dim][2:] in ([side, side], []), value
            compared += 1
    assert compared > 10
