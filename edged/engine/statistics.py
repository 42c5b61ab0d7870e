"""Keeping each channel's mean and spread where full precision has them.

A quantized layer's outputs have another mean and variance than before. Re-estimating BatchNorm statistics from
scratch repairs that, but it also replaces what training saw by what the calibration images show. Moving the trained
statistics by the difference that quantization made, and no further, does the first without the second:

    running_var'  = a^2 running_var,   a^2 = Var[Y_hat] / Var[Y]
    running_mean' = E[Y_hat] - a (E[Y] - running_mean)

so that outputs which were merely scaled and shifted normalize to what they were. Bias correction (the row of that
name in arXiv 2509.05576, Table 1) is the case a = 1: E[(W - W_hat) x] is added back and variances stay. Both sides
follow from the layer's moments; no image has to be run for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer
from edged.calibration.moments import Moments
from edged.spec import Statistics

# A channel whose variance would change by more than this is one that the calibration images hardly excite.
MAX_VARIANCE_RATIO = 4.0
# What is done layer by layer, here; the others act on the finished network.
CORRECTED = (Statistics.BIAS, Statistics.MATCH)


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and variance of each output channel, without the layer's bias, float64 [rows]."""

    mean: Tensor
    variance: Tensor


def statistics_of_weight(weight: Tensor, moments: Moments, power: Tensor) -> ChannelStatistics:
    """Statistics of weight @ X, from the moments of X.

    Args:
        weight: [rows, ...].
        moments: Of the layer's inputs X.
        power: Mean square of each output [rows], diag(W H W^T) / 2.
    """
    totals = moments.total()
    W = weight.flatten(1).reshape(totals.shape[0], -1, totals.shape[1])
    mean = (W @ totals[:, :, None] / moments.positions).flatten().double()
    return ChannelStatistics(mean, (power.double() - mean.square()).clamp_min(0))


class OutputStatistics:
    """Statistics of outputs Y, summed over batches."""

    def __init__(self) -> None:
        self._count = 0
        # Zeros without a dimension join tensors of any shape and device.
        self._sum = self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, y: Tensor, bias: Tensor | None) -> None:
        """Add outputs [b, rows, H, W] of a convolution or [n, rows]; `bias` is what the layer added to them."""
        channels = y if y.dim() == 2 else y.permute(0, 2, 3, 1).flatten(0, 2)
        if bias is not None:
            channels = channels - bias
        self._count += channels.shape[0]
        self._sum = self._sum + channels.sum(0).double()
        self._squares = self._squares + channels.square().sum(0).double()

    def result(self) -> ChannelStatistics:
        """Mean and variance of everything added."""
        mean = self._sum / self._count
        return ChannelStatistics(mean, (self._squares / self._count - mean.square()).clamp_min(0))


def correct_statistics(
    layer: QuantizableLayer,
    norm: nn.Module | None,
    before: ChannelStatistics,
    after: ChannelStatistics,
    statistics: Statistics,
) -> None:
    """Make up for what quantization did to a layer's outputs, in the BatchNorm behind it or else in its own bias.

    Args:
        layer: The quantized layer. Its bias is replaced where it has one and no BatchNorm follows.
        norm: The only reader of its outputs, if that is a BatchNorm2d. Its buffers are replaced.
        before: Of the full-precision outputs.
        after: Of the quantized layer's outputs.
        statistics: MATCH, or BIAS to leave variances alone; nothing is done for others.
    """
    if statistics not in CORRECTED:
        return
    if not isinstance(norm, nn.BatchNorm2d):
        correct_bias(layer, before, after)
    elif statistics is Statistics.BIAS:
        shift_batchnorm(norm, before, after)
    else:
        # The norm reads what the layer adds, too.
        match_batchnorm(norm, _with_bias(before, layer.bias), _with_bias(after, layer.bias))


def shift_batchnorm(norm: nn.BatchNorm2d, before: ChannelStatistics, after: ChannelStatistics) -> None:
    """Move the running mean of `norm` by E[Y_hat] - E[Y]. Replaces the buffer."""
    if norm.running_mean is not None:
        norm.running_mean = (norm.running_mean + (after.mean - before.mean)).to(norm.running_mean.dtype)


def match_batchnorm(norm: nn.BatchNorm2d, before: ChannelStatistics, after: ChannelStatistics) -> None:
    """Move the running statistics of `norm` by what quantization changed. Replaces its buffers."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return
    ratio = (after.variance / before.variance).nan_to_num(1.0, posinf=1.0)
    ratio = ratio.clamp(1 / MAX_VARIANCE_RATIO, MAX_VARIANCE_RATIO)
    norm.running_mean = (after.mean - ratio.sqrt() * (before.mean - mean)).to(mean.dtype)
    norm.running_var = ((variance + norm.eps) * ratio - norm.eps).clamp_min(0).to(variance.dtype)


def correct_bias(layer: QuantizableLayer, before: ChannelStatistics, after: ChannelStatistics) -> None:
    """Add E[Y] - E[Y_hat] to the bias. Replaces it; a layer without bias is left alone."""
    if layer.bias is not None:
        layer.bias = nn.Parameter((layer.bias + (before.mean - after.mean)).to(layer.bias.dtype), requires_grad=False)


def _with_bias(statistics: ChannelStatistics, bias: Tensor | None) -> ChannelStatistics:
    return statistics if bias is None else ChannelStatistics(statistics.mean + bias.detach(), statistics.variance)
