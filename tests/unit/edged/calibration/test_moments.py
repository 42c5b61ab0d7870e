from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.testing import assert_close

from edged.calibration.conv_moments import LagMoments
from edged.calibration.geometry import conv_columns, padded
from edged.calibration.moments import DenseMoments, UnfoldMoments, hessian, moments_for
from tests.support.geometries import GEOMETRIES, SMALL_MAPS


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_moments_are_those_of_the_columns(geometry: dict):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, bias=False, **geometry).requires_grad_(False)
    moments = moments_for(conv)
    X, Y = [], []
    for _ in range(2):
        x = torch.randn(3, 8, 9, 7)
        y = torch.randn_like(conv(x))
        moments.update(x, [conv(x), y])
        X.append(conv_columns(conv, padded(conv, x)))
        Y.append(y.transpose(0, 1).reshape(conv.groups, 16 // conv.groups, -1))
    columns, outputs = torch.cat(X, 2), torch.cat(Y, 2)
    assert moments.positions == columns.shape[2]
    gram = columns @ columns.mT
    assert_close(copy.deepcopy(moments).take_gram(), gram, rtol=1e-4, atol=1e-3)
    assert_close(moments.total(), columns.sum(2), rtol=1e-4, atol=1e-3)
    assert_close(moments.cross(1), outputs @ columns.mT, rtol=1e-4, atol=1e-3)
    weight = conv.weight.reshape(conv.groups, 16 // conv.groups, -1)
    assert_close(moments.cross(0), weight @ gram, rtol=1e-4, atol=1e-3)
    assert_close(hessian(moments), 2 / columns.shape[2] * gram, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(**SMALL_MAPS)
def test_lag_moments_equal_the_unfolded_ones(channels: int, height: int, width: int, images: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, height, width, generator=generator)
    y = torch.randn(images, 2, height, width, generator=generator)
    lag, unfold = LagMoments(channels), UnfoldMoments(nn.Conv2d(channels, 2, 3, padding=1))
    lag.update(x, [y])
    unfold.update(x, [y])
    assert lag.positions == unfold.positions
    assert_close(lag.take_gram(), unfold.take_gram(), rtol=1e-5, atol=1e-4)
    assert_close(lag.total(), unfold.total(), rtol=1e-5, atol=1e-4)
    assert_close(lag.cross(0), unfold.cross(0), rtol=1e-5, atol=1e-4)


def test_linear_layers_of_any_rank():
    layer, x, y = nn.Linear(6, 3), torch.randn(4, 5, 6), torch.randn(4, 5, 3)
    moments = moments_for(layer)
    moments.update(x, [y])
    flat = x.reshape(-1, 6)
    assert moments.positions == 20
    assert_close(moments.take_gram(), (flat.T @ flat)[None])
    assert_close(moments.total(), flat.sum(0)[None])
    assert_close(moments.cross(0), (y.reshape(-1, 3).T @ flat)[None])


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(4, 4), DenseMoments),
        (nn.Conv2d(4, 4, 1, stride=2), DenseMoments),
        (nn.Conv2d(4, 4, 3, padding=1), LagMoments),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), UnfoldMoments),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), UnfoldMoments),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), UnfoldMoments),
    ],
)
def test_the_fastest_moments_are_chosen(layer: nn.Module, kind: type):
    assert isinstance(moments_for(layer), kind)
