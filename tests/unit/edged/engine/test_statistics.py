from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.calibration.moments import hessian, moments_for
from edged.engine.statistics import (
    ChannelStatistics,
    OutputStatistics,
    correct_bias,
    correct_statistics,
    match_batchnorm,
    shift_batchnorm,
    statistics_of_weight,
)
from edged.quant.layer import quantize_layer
from edged.spec import QuantSpec, Statistics


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


def test_bias_absorbs_the_shift():
    layer = nn.Linear(3, 2).requires_grad_(False)
    bias, before, after = layer.bias.clone(), OutputStatistics(), OutputStatistics()
    y = torch.randn(50, 2)
    before.update(y, None)
    after.update(y - torch.tensor([1.0, -2.0]), None)
    correct_bias(layer, before.result(), after.result())
    assert_close(layer.bias, bias + torch.tensor([1.0, -2.0]))


def layer_statistics(
    conv: nn.Conv2d, decoded: torch.Tensor, x: torch.Tensor
) -> tuple[ChannelStatistics, ChannelStatistics]:
    """Return the statistics before and after quantization, from moments alone."""
    moments = moments_for(conv)
    moments.update(x)
    H = hessian(moments)
    found = []
    for weight in (conv.weight, decoded):
        W = weight.reshape(conv.groups, -1, H.shape[1])
        found.append(statistics_of_weight(weight, moments, ((W @ H) * W).sum(2).flatten() / 2))
    return found[0], found[1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_bias_correction_adds_the_mean_error_back(groups: int, bias: bool):
    """Compare with the oracle E[(W - W_hat) x] from float64 patches of zero-padded inputs."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=groups, bias=bias).requires_grad_(False)
    norm, x = nn.BatchNorm2d(6).eval().requires_grad_(False), torch.randn(8, 4, 6, 6) + 0.5
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    quantized = copy.deepcopy(conv)
    quantized.weight = nn.Parameter(conv.weight + 0.1 * torch.randn_like(conv.weight), requires_grad=False)
    patches = nn.functional.unfold(x.double(), 3, padding=1).reshape(8, groups, -1, 36)
    delta = (conv.weight - quantized.weight).double().reshape(groups, -1, patches.shape[2])
    expected = torch.einsum("gri,bgin->gr", delta, patches).flatten() / (8 * 36)
    mean, variance, own = norm.running_mean.clone(), norm.running_var.clone(), quantized.bias
    correct_statistics(quantized, norm, *layer_statistics(conv, quantized.weight, x), Statistics.BIAS)
    assert_close(mean - norm.running_mean, expected.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(norm.running_var, variance)
    assert quantized.bias is own
    if bias:
        correct_statistics(quantized, None, *layer_statistics(conv, quantized.weight, x), Statistics.BIAS)
        assert_close(quantized.bias - own, expected.float(), rtol=1e-4, atol=1e-5)
    assert_close(
        conv(x).mean((0, 2, 3)),
        (quantized(x) + (0 if bias else expected[:, None, None])).mean((0, 2, 3)).float(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_shift_does_not_modify_a_norm_without_statistics():
    norm, zero = nn.BatchNorm2d(2, track_running_stats=False), torch.zeros(2, dtype=torch.float64)
    shift_batchnorm(norm, ChannelStatistics(zero, zero), ChannelStatistics(zero + 1, zero))
    assert norm.running_mean is None


@pytest.mark.parametrize("statistics", [Statistics.NONE, Statistics.REESTIMATE])
def test_other_settings_correct_nothing(statistics: Statistics):
    layer, zero = nn.Linear(3, 2), torch.zeros(2, dtype=torch.float64)
    bias = layer.bias.clone()
    correct_statistics(layer, None, ChannelStatistics(zero + 1, zero), ChannelStatistics(zero, zero), statistics)
    assert torch.equal(layer.bias, bias)


def test_a_norm_after_a_layer_with_a_bias_is_matched_to_the_biased_outputs():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 1).requires_grad_(False)
    conv.bias.copy_(torch.tensor([5.0, -3.0, 2.0]))
    x, norm = torch.randn(32, 2, 8, 8), nn.BatchNorm2d(3).eval().requires_grad_(False)
    norm.running_mean, norm.running_var = conv(x).mean((0, 2, 3)), conv(x).var((0, 2, 3))
    expected = norm(conv(x))
    smaller = copy.deepcopy(conv)
    smaller.weight = nn.Parameter(0.7 * conv.weight, requires_grad=False)
    correct_statistics(smaller, norm, *layer_statistics(conv, smaller.weight, x), Statistics.MATCH)
    assert_close(norm(smaller(x)), expected, rtol=1e-3, atol=1e-3)
