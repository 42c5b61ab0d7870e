"""Correction of each output channel's mean and variance towards those of full precision.

Quantization changes the mean and variance of a layer's outputs. Re-estimating BatchNorm statistics from scratch
repairs this, but also replaces the statistics of the training images by those of the calibration images. Moving the
trained statistics only by the change that quantization caused avoids that:

    running_var'  = a^2 running_var,   a^2 = Var[Y_hat] / Var[Y]
    running_mean' = E[Y_hat] - a (E[Y] - running_mean)

Outputs that were only scaled and shifted then normalize to the same values as before. Bias correction (the row of that
name in arXiv 2509.05576, Table 1) is the case a = 1: E[(W - W_hat) x] is added back and variances are kept. Both
statistics follow from the layer's moments, without running any image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer
from edged.calibration.moments import Moments
from edged.spec import Statistics

# A channel whose variance changes by a larger factor is hardly excited by the calibration images.
MAX_VARIANCE_RATIO = 4.0
# Corrections that are made here, layer by layer; the others act on the finished network.
CORRECTED = (Statistics.BIAS, Statistics.MATCH)


@dataclass(frozen=True)
class ChannelStatistics:
    """The mean and variance of each output channel.

    Attributes:
        mean: Mean without the layer's bias, float64 [rows].
        variance: Variance, float64 [rows].
    """

    mean: Tensor
    variance: Tensor


def statistics_of_weight(weight: Tensor, moments: Moments, power: Tensor) -> ChannelStatistics:
    """Compute the statistics of weight @ X from the moments of X.

    Args:
        weight: Weight [rows, ...]. Not modified.
        moments: Moments of the layer's inputs X.
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
        # Zero-dimensional tensors can be added to tensors of any shape and device.
        self._sum = self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, y: Tensor, bias: Tensor | None) -> None:
        """Add a batch of outputs to the sums.

        Args:
            y: Outputs [b, rows, H, W] of a convolution, or [n, rows]. Not modified.
            bias: Bias [rows] that the outputs include and the statistics exclude; None for no bias.
        """
        channels = y if y.dim() == 2 else y.permute(0, 2, 3, 1).flatten(0, 2)
        if bias is not None:
            channels = channels - bias
        self._count += channels.shape[0]
        self._sum = self._sum + channels.sum(0).double()
        self._squares = self._squares + channels.square().sum(0).double()

    def result(self) -> ChannelStatistics:
        """Return the mean and variance of all outputs added so far."""
        mean = self._sum / self._count
        return ChannelStatistics(mean, (self._squares / self._count - mean.square()).clamp_min(0))


def correct_statistics(
    layer: QuantizableLayer,
    norm: nn.Module | None,
    before: ChannelStatistics,
    after: ChannelStatistics,
    statistics: Statistics,
) -> None:
    """Correct the statistics of a quantized layer's outputs in the following BatchNorm, or else in the layer's bias.

    Args:
        layer: Quantized layer. Its bias is replaced if it has one and no BatchNorm follows.
        norm: Only reader of the layer's outputs if that is a BatchNorm2d. Its buffers are replaced.
        before: Statistics of the full-precision outputs.
        after: Statistics of the quantized layer's outputs.
        statistics: MATCH to correct means and variances, BIAS to correct means only; nothing is done for other values.
    """
    if statistics not in CORRECTED:
        return
    if not isinstance(norm, nn.BatchNorm2d):
        correct_bias(layer, before, after)
    elif statistics is Statistics.BIAS:
        shift_batchnorm(norm, before, after)
    else:
        # The norm reads outputs that include the layer's bias.
        match_batchnorm(norm, _with_bias(before, layer.bias), _with_bias(after, layer.bias))


def shift_batchnorm(norm: nn.BatchNorm2d, before: ChannelStatistics, after: ChannelStatistics) -> None:
    """Shift the running mean of `norm` by E[Y_hat] - E[Y], replacing the buffer."""
    if norm.running_mean is not None:
        norm.running_mean = (norm.running_mean + (after.mean - before.mean)).to(norm.running_mean.dtype)


def match_batchnorm(norm: nn.BatchNorm2d, before: ChannelStatistics, after: ChannelStatistics) -> None:
    """Change the running statistics of `norm` as quantization changed its inputs', replacing its buffers."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return
    ratio = (after.variance / before.variance).nan_to_num(1.0, posinf=1.0)
    ratio = ratio.clamp(1 / MAX_VARIANCE_RATIO, MAX_VARIANCE_RATIO)
    norm.running_mean = (after.mean - ratio.sqrt() * (before.mean - mean)).to(mean.dtype)
    norm.running_var = ((variance + norm.eps) * ratio - norm.eps).clamp_min(0).to(variance.dtype)


def correct_bias(layer: QuantizableLayer, before: ChannelStatistics, after: ChannelStatistics) -> None:
    """Add E[Y] - E[Y_hat] to the bias, replacing the parameter; a layer without bias is not modified."""
    if layer.bias is not None:
        layer.bias = nn.Parameter((layer.bias + (before.mean - after.mean)).to(layer.bias.dtype), requires_grad=False)


def _with_bias(statistics: ChannelStatistics, bias: Tensor | None) -> ChannelStatistics:
    return statistics if bias is None else ChannelStatistics(statistics.mean + bias.detach(), statistics.variance)
