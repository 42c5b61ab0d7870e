from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from edged.engine import integer_convolution
from edged.engine.integer_convolution import (
    LEVELS,
    LEVELS_WITHOUT_VNNI,
    MOST_WEIGHT,
    CodedConvolution,
    RoundedConvolution,
    integers_are_faster,
    levels,
    with_rounded_convolutions,
)
from edged.execution.grids import ActivationGrid
from edged.quant.grid import QuantizedWeight
from tests.support.geometries import GEOMETRIES, SMALL_MAPS
from tests.support.repository import ROOT

pytestmark = pytest.mark.skipif(not levels(), reason="this processor has no fast convolutions of integers")

LAYERS = [
    nn.Conv2d(8, 6, **geometry, bias=number % 3 > 0)
    for number, geometry in enumerate(GEOMETRIES)
    if geometry["groups"] == 1 and geometry["padding_mode"] == "zeros" and geometry["padding"] != "same"
]


def of_codes(layer: nn.Conv2d) -> nn.Conv2d:
    """Return a layer of the same geometry whose weights are codes, the largest among them, on a scale for each row."""
    made = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=layer.bias is not None,
    ).requires_grad_(False)
    codes = torch.randint(-MOST_WEIGHT, MOST_WEIGHT + 1, made.weight.shape).float()
    codes.view(len(codes), -1)[:, 0] = MOST_WEIGHT
    made.weight.copy_(codes * 2.0 ** -(torch.arange(len(codes)) % 4 + 3)[:, None, None, None])
    return made


def codes_of_inputs(*shape: int, least: int, step: float) -> Tensor:
    """Return values that are whole multiples of `step`, from `least` to `least` + levels() times it."""
    codes = torch.randint(least, least + levels() + 1, shape).float()
    codes.view(-1)[0], codes.view(-1)[-1] = least, least + levels()
    return codes * step


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("least", [0, -9, -levels() // 2, -levels()])
@torch.inference_mode()
def test_of_codes_the_outputs_are_those_in_floats(layer: nn.Conv2d, least: int):
    torch.manual_seed(0)
    layer = of_codes(layer)
    integers = RoundedConvolution(layer, levels())
    for step in (0.125, 4.0):  # each batch has a scale of its own
        x = codes_of_inputs(3, 8, 9, 7, least=least, step=step)
        expected = layer(x)
        assert_close(integers(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@settings(max_examples=40, deadline=None)
@given(**SMALL_MAPS, kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), least=st.sampled_from([0, -7]))
@torch.inference_mode()
def test_maps_of_any_size(
    channels: int, height: int, width: int, images: int, seed: int, kernel: int, stride: int, least: int
):
    torch.manual_seed(seed)
    layer = of_codes(nn.Conv2d(channels, 3, kernel, stride, padding=kernel // 2))
    x = codes_of_inputs(images, channels, height, width, least=least, step=0.5)
    expected = layer(x)
    found = RoundedConvolution(layer, levels())(x)
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def coded(layer: nn.Conv2d, bits: int, zero: int | None = None) -> QuantizedWeight:
    """Return random codes for a layer, which gets their values; the smallest and the largest are in every row."""
    rows, columns = layer.weight.shape[0], layer.weight[0].numel()
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    codes[:, 0], codes[:, -1] = 0, (1 << bits) - 1
    zeros = torch.randint(0, 1 << bits, (rows,)) if zero is None else torch.full((rows,), zero)
    weight = QuantizedWeight(
        codes, 2.0 ** -(torch.arange(rows) % 4 + 3.0), zeros.to(torch.uint8), bits, tuple(layer.weight.shape)
    )
    layer.weight.copy_(weight.decode())
    return weight


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize(("bits", "zero"), [(2, None), (4, None), (6, None), (7, 64)])
@pytest.mark.parametrize("zero_point", [0, 9, 255])
@torch.inference_mode()
def test_nothing_of_codes_on_grids_is_lost(layer: nn.Conv2d, bits: int, zero: int | None, zero_point: int):
    torch.manual_seed(0)
    layer = of_codes(layer)
    weight, grid = coded(layer, bits, zero), ActivationGrid(0.037, zero_point)
    assert CodedConvolution.fits(weight, grid)
    integers = CodedConvolution(layer, weight, grid)
    for images in (3, 1):
        codes = torch.randint(0, 256, (images, 8, 9, 7)).float()
        x = grid.decode(codes).half().float()  # as it waits between two layers
        expected = layer(grid.decode(codes).double().float())
        assert_close(integers(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@torch.inference_mode()
def test_the_bias_may_be_corrected_afterwards():
    layer = of_codes(nn.Conv2d(8, 6, 3, padding=1))
    grid = ActivationGrid(0.5, 3)
    integers = CodedConvolution(layer, coded(layer, 4), grid)
    layer.bias = nn.Parameter(layer.bias + 5.0, requires_grad=False)
    x = grid.nearest(torch.randn(2, 8, 9, 7))
    assert_close(integers(x), layer(x))


def test_codes_that_do_not_fit_are_left_in_floats(monkeypatch: pytest.MonkeyPatch):
    layer, grid = nn.Conv2d(8, 6, 3).requires_grad_(False), ActivationGrid(0.5, 3)
    assert CodedConvolution.fits(coded(layer, 4), grid)
    assert not CodedConvolution.fits(coded(layer, 8, 0), grid)  # up to 255
    assert not CodedConvolution.fits(coded(layer, 4), ActivationGrid(0.5, 0, signed=True))
    assert not CodedConvolution.fits(coded(layer, 4), ActivationGrid(0.5, 3, bits=4))
    for most, fits in ((LEVELS, True), (LEVELS_WITHOUT_VNNI, False)):
        monkeypatch.setattr(integer_convolution, "levels", lambda most=most: most)
        assert CodedConvolution.fits(coded(layer, 7, 64), grid)  # -64 to 63, and 2 * 64 * 255 < 2^15
        assert CodedConvolution.fits(coded(layer, 7, 0), grid) == fits


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_rounding_is_bounded(layout: torch.memory_format):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 8, 3, padding=1)
    x = torch.randn(4, 16, 12, 12).contiguous(memory_format=layout)
    found, expected = RoundedConvolution(layer, levels())(x), layer(x)
    assert found.dtype is torch.float32
    # Every input and every weight is off by half a step at most.
    inputs = float(x.max() - x.min()) / levels()
    weights = float(layer.weight.abs().max()) / MOST_WEIGHT
    sums = layer.weight[0].numel() * (inputs * float(layer.weight.abs().max()) + weights * float(x.abs().max()))
    assert float((found - expected).abs().max()) < 0.51 * sums
    assert float((found - expected).square().sum() / expected.square().sum()) < 1e-3


@torch.inference_mode()
def test_the_zero_moves_with_the_inputs(monkeypatch: pytest.MonkeyPatch):
    packed = []
    pack = RoundedConvolution._pack
    monkeypatch.setattr(RoundedConvolution, "_pack", lambda self, *to: packed.append(to[1]) or pack(self, *to))
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 8, 3, padding=1, bias=False)
    integers, x = RoundedConvolution(layer, levels()), torch.rand(2, 16, 9, 9)
    for batch in (x, x * 3, x[:1], x - 0.001, x - 0.5, -x):
        expected = layer(batch)
        assert float((integers(batch) - expected).square().sum() / expected.square().sum()) < 1e-3
    assert packed == [0, pytest.approx(levels() / 2, abs=2), levels()]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@torch.inference_mode()
def test_values_that_are_not_finite_are_not_hidden(wrong: float):
    layer, x = nn.Conv2d(4, 3, 3, padding=1), torch.randn(2, 4, 5, 5)
    x[0, 1, 2, 3] = wrong
    found = RoundedConvolution(layer, levels())(x)
    assert_close(found, layer(x), equal_nan=True)
    assert not bool(found.isfinite().all())


@torch.inference_mode()
def test_inputs_and_rows_of_zeros():
    layer = nn.Conv2d(4, 3, 3, padding=1)
    layer.weight[1] = 0
    integers = RoundedConvolution(layer, levels())
    zeros = torch.zeros(2, 4, 5, 5)
    assert_close(integers(zeros), layer(zeros))
    x = torch.randn(2, 4, 5, 5)
    assert_close(integers(x)[:, 1], layer.bias[1].expand(2, 5, 5))


def test_codes_are_smaller_where_the_processor_clips_sums():
    program = (
        "import torch; from torch import nn; from edged.engine.integer_convolution import RoundedConvolution, levels;"
        "torch.manual_seed(0); torch.set_grad_enabled(False); most = levels(); layer = nn.Conv2d(64, 64, 3, padding=1);"
        "layer.weight.copy_(torch.where(torch.rand_like(layer.weight) < 0.99, 127.0, -127.0));"
        "x = torch.where(torch.rand(2, 64, 9, 9) < 0.99, float(most), 0.0);"
        "assert torch.allclose(RoundedConvolution(layer, most)(x), layer(x), rtol=1e-5); print(most)"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(LEVELS_WITHOUT_VNNI), done.stderr


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_a_torch_without_the_operation_computes_in_floats(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object) -> Tensor:
        raise error("no such operation")

    monkeypatch.setattr(RoundedConvolution, "_pack", missing)
    assert levels.__wrapped__() == 0


@pytest.mark.parametrize(
    ("layer", "faster"),
    [
        (nn.Conv2d(64, 64, 3, padding=1), True),
        (nn.Conv2d(3, 64, 7, stride=2, padding=3), True),
        (nn.Conv2d(512, 2048, 1), True),
        (nn.Conv2d(256, 64, 1), False),
        (nn.Conv2d(64, 256, 1), False),
        (nn.Conv2d(16, 16, 3, padding=1), False),
        (nn.Conv2d(64, 64, 3, padding=1, groups=2), False),
        (nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), False),
        (nn.Conv2d(64, 64, 3, padding="same"), False),
        (nn.Linear(512, 1000), False),
    ],
    ids=str,
)
def test_only_large_convolutions_are_replaced(layer: nn.Module, faster: bool, monkeypatch: pytest.MonkeyPatch):
    modules = {"": nn.Sequential(layer), "0": layer}
    found = with_rounded_convolutions(modules, {"0": layer})
    assert isinstance(found["0"], RoundedConvolution) == faster
    assert found[""] is modules[""]
    monkeypatch.setattr(integer_convolution, "levels", lambda: 0)
    assert not integers_are_faster(layer)
    assert with_rounded_convolutions(modules, {"0": layer}) == modules


def test_the_largest_sums_fit_their_integers():
    assert 2 * LEVELS_WITHOUT_VNNI * MOST_WEIGHT <= integer_convolution.CLIPPED
    assert 512 * 7 * 7 * LEVELS * MOST_WEIGHT < 2**31
