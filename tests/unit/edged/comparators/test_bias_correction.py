from __future__ import annotations

import torch
from torch.testing import assert_close

from edged.comparators.bias_correction import channel_means
from edged.comparators.method import Options
from edged.comparators.network import quantize_with
from edged.comparators.units import find_units
from tests.support.comparators import images, inputs_of, network


def test_every_channel_has_the_mean_of_full_precision_on_the_calibration_images():
    model = network()
    found = quantize_with("bias-correction", model, images, Options(bits=2)).model
    plain = quantize_with("rtn", model, images, Options(bits=2)).model
    moved = 0.0
    for unit in find_units(model, blockwise=False):
        modules = [net.get_submodule(unit.name) for net in (model, found, plain)]
        norms = [net.get_submodule(unit.norm_name) if unit.norm_name else None for net in (model, found, plain)]
        means = []
        for net, module, norm in zip((model, found, plain), modules, norms, strict=True):
            y = module(inputs_of(net, unit.name))
            means.append(channel_means(y if norm is None else norm(y), unit))
        assert_close(means[1], means[0], rtol=1e-3, atol=1e-3)
        moved = max(moved, float((means[2] - means[0]).abs().max()))
    assert moved > 0.1  # without the correction the means differ


def test_means_are_over_images_and_positions():
    units = {unit.name: unit for unit in find_units(network(), blockwise=False)}
    y = torch.randn(4, 16, 5, 5)
    assert_close(channel_means(y, units["conv1"]), y.double().mean((0, 2, 3)))
    assert_close(channel_means(y[:, :10, 0, 0], units["linear"]), y[:, :10, 0, 0].double().mean(0))
