from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from edged.calibration.gram import DenseGram, LagGram, UnfoldGram, conv_columns, gram_for, hessian

GEOMETRIES = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "groups": g, "padding_mode": mode}
    for k in (1, 3, (3, 1))
    for s in (1, 2)
    for p in (0, 1, "same")
    for d in (1, 2)
    for g in (1, 2, 8)
    for mode in ("zeros", "reflect")
    if not (p == "same" and s == 2)
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_weights_times_columns_are_the_convolution(geometry: dict):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, bias=False, dtype=torch.float64, **geometry)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    columns = conv_columns(conv, x)
    rows = conv.weight.reshape(conv.groups, 16 // conv.groups, -1)
    expected = conv(x)
    products = (rows @ columns).reshape(16, 2, *expected.shape[2:]).transpose(0, 1)
    assert_close(products, expected)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_chosen_gram_is_the_gram_of_the_columns(geometry: dict):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, bias=False, **geometry)
    gram, expected = gram_for(conv), 0
    for _ in range(2):
        x = torch.randn(3, 8, 9, 7)
        gram.update(x)
        columns = conv_columns(conv, x)
        expected += columns @ columns.transpose(1, 2)
    assert_close(gram.matrix(), expected, rtol=1e-4, atol=1e-3)
    assert_close(hessian(gram), 2 / gram.positions * expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 5),
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    images=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_lag_gram_equals_the_unfolded_one(channels: int, height: int, width: int, images: int, seed: int):
    conv = nn.Conv2d(channels, 1, 3, padding=1)
    x = torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(seed))
    lag, unfold = LagGram(channels), UnfoldGram(conv)
    lag.update(x)
    unfold.update(x)
    assert lag.positions == unfold.positions
    assert_close(lag.matrix(), unfold.matrix(), rtol=1e-5, atol=1e-4)


def test_lag_gram_stores_a_third_of_the_matrix():
    stored = LagGram(32)._sums.numel()
    assert stored / (9 * 32) ** 2 == pytest.approx(29 / 81)


def test_linear_layers_of_any_rank():
    layer, x = nn.Linear(6, 3), torch.randn(4, 5, 6)
    gram = gram_for(layer)
    gram.update(x)
    flat = x.reshape(-1, 6)
    assert gram.positions == 20
    assert_close(gram.matrix(), (flat.T @ flat)[None])


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(4, 4), DenseGram),
        (nn.Conv2d(4, 4, 1, stride=2), DenseGram),
        (nn.Conv2d(4, 4, 3, padding=1), LagGram),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), UnfoldGram),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), UnfoldGram),
    ],
)
def test_the_cheapest_way_is_chosen(layer: nn.Module, kind: type):
    assert isinstance(gram_for(layer), kind)
