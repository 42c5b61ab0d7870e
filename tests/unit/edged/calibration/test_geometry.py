from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.calibration.geometry import conv_columns, geometry_of, padded, positions_of
from tests.support.geometries import GEOMETRIES


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_weights_times_columns_equal_the_convolution(geometry: dict):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, bias=False, dtype=torch.float64, **geometry)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    columns = conv_columns(conv, padded(conv, x))
    rows = conv.weight.reshape(conv.groups, 16 // conv.groups, -1)
    expected = conv(x)
    products = (rows @ columns).reshape(16, 2, *expected.shape[2:]).transpose(0, 1)
    assert_close(products, expected)
    assert positions_of(conv, x) == expected[0, 0].numel()


def test_positions_of_a_linear_layer_are_its_vectors():
    layer = nn.Linear(6, 4)
    assert positions_of(layer, torch.zeros(3, 6)) == 1
    assert positions_of(layer, torch.zeros(3, 5, 6)) == 5


def test_same_padding_is_the_same_geometry_as_its_numbers():
    assert geometry_of(nn.Conv2d(4, 4, 3, padding="same")) == geometry_of(nn.Conv2d(4, 8, 3, padding=1))
    assert geometry_of(nn.Conv2d(4, 4, 3, padding=1)) != geometry_of(nn.Conv2d(4, 4, 3, padding=1, stride=2))
