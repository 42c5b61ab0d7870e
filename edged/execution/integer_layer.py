"""A layer that multiplies and sums whole numbers, with floating-point kernels and without rounding.

float32 holds whole numbers up to 2**24. A layer is computed in parts of its input channels whose sums stay below that,
so that the result does not depend on the order of summation: not on the number of threads, the batch or the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edged.execution.graph import Conv, Weighted
from edged.execution.grids import ActivationGrid

_EXACT = 2.0**24


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution or a linear layer on codes.

    Attributes:
        node: The layer.
        input: Grid of its input.
        parts: Input channels from, to, and the weight's codes less their zero points for them, float32 or float64
            [rows, channels of the part, ...].
        bias: Bias in steps of the sums, whole numbers, float64 [rows].
        scale: Step of the sums, float64 [rows].
    """

    node: Weighted
    input: ActivationGrid
    parts: tuple[tuple[int, int, Tensor], ...]
    bias: Tensor
    scale: Tensor

    @classmethod
    def of(cls, node: Weighted, grid: ActivationGrid) -> IntegerLayer:
        """Prepare a layer whose weight is quantized and whose input has this grid."""
        quantized = node.weight.quantized
        assert quantized is not None  # noqa: S101  # the placement has no other layer on codes
        whole = quantized.codes.float() - quantized.zero_point.float()[:, None]
        scale = grid.scale * quantized.scale.double()
        bias = (node.bias.double() / scale).nan_to_num(0.0, 0.0, 0.0).round()
        groups = node.groups if isinstance(node, Conv) else 1
        reach = max(grid.most - grid.zero_point, grid.zero_point - grid.least)
        return cls(node, grid, _parts(whole.reshape(quantized.shape), reach, groups), bias, scale)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's real outputs, float32.

        Args:
            x: Values on the input's grid, float32 [batch, channels, ...]. Not modified.
        """
        codes = (x / self.input.scale).round_()
        sums = self.bias.view(-1, *(1,) * (x.dim() - 2))
        for first, stop, weight in self.parts:
            part = codes if stop - first == codes.shape[1] else codes[:, first:stop]
            # Kernels that transform their inputs (Winograd) leave fractions.
            sums = sums + self._multiplied(part.to(weight.dtype), weight).double().round_()
        return sums.mul_(self.scale.view(-1, *(1,) * (x.dim() - 2))).float()

    def _multiplied(self, codes: Tensor, weight: Tensor) -> Tensor:
        node = self.node
        if isinstance(node, Conv):
            return functional.conv2d(codes, weight, None, node.stride, node.padding, groups=node.groups)
        return functional.linear(codes, weight)


def _parts(weight: Tensor, reach: int, groups: int) -> tuple[tuple[int, int, Tensor], ...]:
    """Divide a weight, float32 [rows, channels, ...], into parts whose sums over codes up to `reach` are exact."""
    worst = weight.abs().flatten(2).sum(2) if weight.dim() > 2 else weight.abs()
    largest = worst.double() * reach
    channels = weight.shape[1]
    if groups > 1:
        exact = bool((largest.sum(1) <= _EXACT).all())
        return ((0, channels * groups, weight if exact else weight.double()),)
    if bool((largest > _EXACT).any()):  # a single channel of a huge kernel
        return ((0, channels, weight.double()),)
    parts, first = [], 0
    sums = torch.zeros(len(weight), dtype=torch.float64)
    for channel, column in enumerate(largest.unbind(1)):
        if bool((sums + column > _EXACT).any()):
            parts.append((first, channel, weight[:, first:channel].contiguous()))
            first, sums = channel, torch.zeros_like(sums)
        sums = sums + column
    return (*parts, (first, channels, weight if not parts else weight[:, first:].contiguous()))
