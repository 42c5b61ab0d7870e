from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional

from edged.execution.graph import Conv, Graph, Node, Predictions, Relu, Silu, Weight
from edged.execution.grids import ActivationGrid
from edged.execution.placement import Placement, head_parameters, place
from edged.execution.rearranged import SPLIT_ORDER, joined_pixels, products_of_codes
from edged.quant.grid import QuantizedWeight


def conv(channels: int, kernel: int, stride: int, padding: int, rows: int = 5, groups: int = 1) -> Conv:
    values = torch.randint(-8, 8, (rows, channels // groups, kernel, kernel)).float()
    pair = (stride, stride), (padding, padding)
    return Conv("a", ("x",), Weight("a.weight", values), torch.zeros(rows), *pair, groups)


def placed(*nodes: Node, channels: int = 3) -> Placement:
    return place(Graph("x", channels, nodes, nodes[-1].name))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "channels", "size"),
    [
        (kernel, stride, padding, channels, size)
        for kernel, stride, padding, channels in itertools.product(range(1, 9), (2, 4), range(4), (1, 3))
        for size in (16, 24)
        if 2 * padding <= kernel
    ],
)
def test_a_convolution_over_blocks_computes_the_same(
    kernel: int, stride: int, padding: int, channels: int, size: int
) -> None:
    torch.manual_seed(0)
    layer = conv(channels, kernel, stride, padding)
    joined = joined_pixels(placed(layer, Relu("b", ("a",))), size)
    if joined is None:
        assert kernel < stride or (size + 2 * padding - kernel) // stride + 1 < size // stride
        return
    image = torch.randint(0, 255, (2, channels, size, size)).float()
    block = joined.block
    divided = image.reshape(2, channels, size // block, block, size // block, block)
    blocks = divided.permute(SPLIT_ORDER).reshape(2, -1, size // block, size // block)
    around = (joined.front[1], joined.back[1], joined.front[0], joined.back[0])
    weight = functional.pad(layer.weight.values, around).reshape(joined.split).permute(SPLIT_ORDER)
    top, left, bottom, right = joined.pads
    found = functional.conv2d(
        functional.pad(blocks, (left, right, top, bottom)).double(), weight.reshape(joined.shape).double()
    )
    wanted = functional.conv2d(image.double(), layer.weight.values.double(), None, stride, padding)
    assert torch.equal(found, wanted)
    assert joined.shape[1] % 4 == 0


def test_the_first_layers_of_yolov5_and_resnet_are_joined() -> None:
    yolo = joined_pixels(placed(conv(3, 6, 2, 2), Relu("b", ("a",))), 640)
    assert yolo is not None
    assert (yolo.shape, yolo.front, yolo.back, yolo.pads) == ((5, 12, 3, 3), (0, 0), (0, 0), (1, 1, 1, 1))
    resnet = joined_pixels(placed(conv(3, 7, 2, 3), Relu("b", ("a",))), 224)
    assert resnet is not None
    assert (resnet.shape, resnet.front, resnet.back, resnet.pads) == ((5, 12, 4, 4), (1, 1), (0, 0), (2, 2, 1, 1))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (conv(3, 3, 1, 1), 32),  # nothing to join
        (conv(4, 6, 2, 2), 32),  # channels in fours already
        (conv(3, 6, 2, 2), 33),  # a block would be cut
        (conv(3, 3, 3, 0), 33),  # 27 channels are no multiple of four either
        (conv(6, 6, 2, 2, rows=6, groups=2), 32),
    ],
)
def test_other_layers_stay_as_they_are(layer: Conv, size: int) -> None:
    assert joined_pixels(placed(layer, Relu("b", ("a",))), size) is None


def test_a_layer_in_float_and_an_input_with_other_readers_stay_as_they_are() -> None:
    layer = conv(3, 6, 2, 2)
    graph = Graph("x", 3, (layer, Relu("b", ("a",))), "b")
    assert joined_pixels(place(graph), 32) is not None
    assert joined_pixels(place(graph, ["a.weight"]), 32) is None
    other = dataclasses.replace(layer, name="c")
    assert joined_pixels(placed(layer, other, Relu("b", ("a",))), 32) is None
    assert joined_pixels(placed(Silu("b", ("x",))), 32) is None


def head(
    bits: int = 7, zero: int = 64, bias: float = 1.0, kernel: int = 1
) -> tuple[Placement, dict[str, ActivationGrid]]:
    """Return a detector whose output layer reads what another layer reads as codes."""
    codes = torch.randint(0, 1 << bits, (10, 3 * kernel**2), dtype=torch.uint8)
    codes[0, 0], codes[0, 1] = 0, (1 << bits) - 1
    zeros = torch.full((10,), zero, dtype=torch.uint8)
    quantized = QuantizedWeight(codes, torch.full((10,), 0.5), zeros, bits, (10, 3, kernel, kernel))
    weight = Weight("head.weight", quantized.decode(), quantized)
    out = Conv("h", ("x",), weight, torch.full((10,), bias), padding=(kernel // 2, kernel // 2))
    graph = Graph("x", 3, (conv(3, 3, 1, 1), out, Predictions("y", ("h",), 5)), "y")
    return place(graph, head_parameters(graph)), {"x": ActivationGrid(0.5, 0)}


def test_an_output_layer_multiplies_codes_where_they_fit() -> None:
    assert products_of_codes(*head()) == {"h"}
    assert products_of_codes(*head(bits=8, zero=128)) == {"h"}
    assert products_of_codes(*head(bits=8, zero=100)) == frozenset()  # 255 - 100 is no int8
    assert products_of_codes(*head(bias=1e10)) == frozenset()
    assert products_of_codes(*head(kernel=3)) == frozenset()


def test_an_output_layer_without_codes_computes_in_float() -> None:
    placement, grids = head()
    assert products_of_codes(dataclasses.replace(placement, owners={}), grids) == frozenset()
    assert products_of_codes(dataclasses.replace(placement, float_layers=frozenset()), grids) == frozenset()
