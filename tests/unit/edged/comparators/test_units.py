from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.comparators.units import find_units
from edged.errors import ArchitectureError
from edged.models.layers import quantizable_layers
from edged.models.resnet import Bottleneck, ResNet
from tests.support.comparators import network


def test_each_layer_belongs_to_one_unit_in_order_of_execution():
    model = network(blocks=2)
    for blockwise in (False, True):
        found = [layer for unit in find_units(model, blockwise) for layer in unit.layers]
        assert found == list(quantizable_layers(model))


def test_blocks_are_the_residual_blocks_and_the_rest_are_layers():
    units = find_units(network(), blockwise=True)
    assert [unit.name for unit in units] == ["conv1", "layer1.0", "layer2.0", "layer3.0", "linear"]
    assert [unit.is_block for unit in units] == [False, True, True, True, False]
    assert list(units[1].layers) == ["layer1.0.conv1", "layer1.0.conv2"]


def test_a_projection_belongs_to_its_block():
    model = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=3).eval()
    units = {unit.name: unit for unit in find_units(model, blockwise=True)}
    assert set(units["layer2.0"].layers) == {f"layer2.0.{part}" for part in ("conv1", "conv2", "conv3", "downsample.0")}


def test_a_layer_knows_its_norm_and_its_activation():
    model = network()
    units = {unit.name: unit for unit in find_units(model, blockwise=False)}
    first, second = units["layer1.0.conv1"], units["layer1.0.conv2"]
    assert (first.norm_name, second.norm_name) == ("layer1.0.bn1", "layer1.0.bn2")
    assert first.activation is nn.functional.relu
    assert second.activation is None  # the shortcut is added before
    assert units["linear"].norm is None
    y = torch.randn(2, 16, 4, 4)
    assert_close(first.activated(y), model.layer1[0].bn1(y).relu())
    assert_close(second.activated(y), model.layer1[0].bn2(y))


@pytest.mark.parametrize("name", ["layer1.0", "layer2.0", "conv1"])
def test_running_a_unit_with_its_own_weights_is_the_module(name: str):
    model = network()
    (unit,) = (unit for unit in find_units(model, blockwise=True) if unit.name == name)
    x = torch.randn(2, 3 if name == "conv1" else 16, 8, 8)
    weights = {layer: module.weight for layer, module in unit.layers.items()}
    assert_close(unit.run(x, weights), unit.module(x))
    doubled = {layer: 2 * weight for layer, weight in weights.items()}
    assert not torch.equal(unit.run(x, doubled), unit.module(x))


def test_a_network_without_layers_is_refused():
    with pytest.raises(ArchitectureError, match="no convolution"):
        find_units(nn.Sequential(nn.ReLU()), blockwise=False)
