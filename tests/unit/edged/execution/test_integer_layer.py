from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edged.execution.graph import Conv, Linear, Weight, Weighted
from edged.execution.grids import ActivationGrid
from edged.execution.integer_layer import IntegerLayer
from edged.quant.grid import QuantizedWeight

GRID = ActivationGrid(0.25, 3)


def layer(shape: tuple[int, ...], groups: int = 1, seed: int = 0) -> Weighted:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape[0], torch.Size(shape).numel() // shape[0]
    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    codes[0] = 255  # the largest sums that can be
    scale = torch.rand(rows, generator=generator) + 0.1
    quantized = QuantizedWeight(codes, scale, torch.full((rows,), 128, dtype=torch.uint8), 8, shape)
    weight, bias = Weight("w", quantized.decode(), quantized), torch.randn(rows, generator=generator)
    if len(shape) == 2:
        return Linear("y", ("x",), weight, bias)
    return Conv("y", ("x",), weight, bias, (1, 1), (shape[2] // 2,) * 2, groups)


def expected(node: Weighted, codes: torch.Tensor) -> torch.Tensor:
    """Compute in float64, which holds every sum."""
    quantized = node.weight.quantized
    assert quantized is not None
    whole = (quantized.codes.double() - 128).reshape(quantized.shape)
    scale = GRID.scale * quantized.scale.double()
    bias = (node.bias.double() / scale).round()
    if isinstance(node, Linear):
        return (functional.linear(codes.double(), whole, bias) * scale).float()
    sums = functional.conv2d(codes.double(), whole, bias, node.stride, node.padding, groups=node.groups)
    return (sums * scale[:, None, None]).float()


@pytest.mark.parametrize(
    ("shape", "groups", "parts", "kind"),
    [
        ((4, 100), 1, 1, torch.float32),
        ((4, 1200), 1, 3, torch.float32),
        ((4, 16, 3, 3), 1, 1, torch.float32),
        ((4, 200, 3, 3), 1, 4, torch.float32),
        ((4, 2, 3, 3), 2, 1, torch.float32),
        ((4, 100, 3, 3), 2, 1, torch.float64),
        ((2, 2, 31, 31), 1, 1, torch.float64),
    ],
)
def test_sums_are_exact(shape: tuple[int, ...], groups: int, parts: int, kind: torch.dtype) -> None:
    node = layer(shape, groups)
    prepared = IntegerLayer.of(node, GRID)
    assert (len(prepared.parts), prepared.parts[0][2].dtype) == (parts, kind)
    size = (2, shape[1] * groups, *((5, 5) if len(shape) == 4 else ()))
    codes = torch.full(size, 252.0)
    codes[1] = torch.randint(-3, 253, size[1:], generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(prepared(GRID.scale * codes), expected(node, codes))


@settings(max_examples=30)
@given(st.integers(1, 700), st.integers(0, 2**32))
def test_parts_are_all_of_the_weight_within_the_bound(columns: int, seed: int) -> None:
    node = layer((3, columns), seed=seed)
    prepared = IntegerLayer.of(node, GRID)
    assert node.weight.quantized is not None
    assert torch.equal(torch.cat([w for *_, w in prepared.parts], 1), node.weight.quantized.codes.float() - 128)
    assert [first for first, *_ in prepared.parts] == [0, *(stop for _, stop, _ in prepared.parts)][:-1]
    assert all(float(weight.abs().sum(1).max()) * 252 <= 2**24 for *_, weight in prepared.parts)


def test_the_input_is_not_modified() -> None:
    x = torch.full((1, 100), 0.5)
    IntegerLayer.of(layer((4, 100)), GRID)(x)
    assert bool((x == 0.5).all())
