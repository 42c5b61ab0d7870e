from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.calibration.moments import hessian, moments_for
from edged.engine.statistics import OutputStatistics, correct_bias, match_batchnorm, statistics_of_weight
from edged.quant.layer import quantize_layer
from edged.spec import QuantSpec


@pytest.mark.parametrize("groups", [1, 2])
def test_statistics_from_moments_are_those_of_the_outputs(groups: int):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=groups).requires_grad_(False)
    moments, direct, x = moments_for(conv), OutputStatistics(), torch.randn(8, 4, 6, 6) + 0.5
    moments.update(x)
    direct.update(conv(x), conv.bias)
    result = quantize_layer(conv.weight, hessian(moments), QuantSpec(bits=3))
    before, expected = statistics_of_weight(conv.weight, moments, result.target_power), direct.result()
    assert_close(before.mean, expected.mean, rtol=1e-4, atol=1e-5)
    assert_close(before.variance, expected.variance, rtol=1e-4, atol=1e-5)
    decoded = result.weight.decode()
    quantized = OutputStatistics()
    quantized.update(nn.functional.conv2d(x, decoded, padding=1, groups=groups), None)
    after = statistics_of_weight(decoded, moments, result.power)
    assert_close(after.variance, quantized.result().variance, rtol=1e-3, atol=1e-4)


def test_matched_batchnorm_gives_the_trained_output_statistics():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean, norm.running_var = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 1.0, 0.25])
    y = torch.randn(64, 3, 8, 8) * 2 + 1
    y_hat = 0.8 * y + 0.3
    statistics = []
    for outputs in (y, y_hat):
        sums = OutputStatistics()
        sums.update(outputs, None)
        statistics.append(sums.result())
    expected = norm(y)
    match_batchnorm(norm, *statistics)
    assert_close(norm(y_hat), expected, rtol=1e-3, atol=1e-3)


def test_an_unchanged_layer_changes_no_statistics():
    norm = nn.BatchNorm2d(2)
    before = norm.state_dict()
    sums = OutputStatistics()
    sums.update(torch.randn(9, 2, 3, 3), None)
    match_batchnorm(norm, sums.result(), sums.result())
    assert_close(norm.state_dict(), before)


def test_a_dead_channel_keeps_its_variance():
    norm, dead, alive = nn.BatchNorm2d(1), OutputStatistics(), OutputStatistics()
    dead.update(torch.zeros(4, 1, 2, 2), None)
    alive.update(torch.randn(4, 1, 2, 2), None)
    match_batchnorm(norm, dead.result(), alive.result())
    assert_close(norm.running_var, torch.ones(1))


def test_bias_takes_up_the_shift():
    layer = nn.Linear(3, 2).requires_grad_(False)
    bias, before, after = layer.bias.clone(), OutputStatistics(), OutputStatistics()
    y = torch.randn(50, 2)
    before.update(y, None)
    after.update(y - torch.tensor([1.0, -2.0]), None)
    correct_bias(layer, before.result(), after.result())
    assert_close(layer.bias, bias + torch.tensor([1.0, -2.0]))
