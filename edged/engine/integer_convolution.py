"""Convolutions of codes of 8 bits, which x86 processors compute several times faster than those of floats.

    W X + bias  ~  scale_W scale_X (W_codes (X_codes - zero)) + bias,   summed exactly in integers

`CodedConvolution` carries the quantized stream where its values are on grids already: it loses nothing.

`RoundedConvolution` rounds both factors. It carries calibration images through the full-precision network where nothing
but moments of what arrives is summed: each rounding adds an error of about 1e-4 of the outputs' power, which is
uncorrelated with them, so neither a Hessian nor the codes that fit it best change much. Targets are another matter: a
layer is fitted to them with as many numbers as it has inputs, so they are computed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer
from edged.execution.grids import ActivationGrid
from edged.matmul import may_have_integer_kernels
from edged.quant.grid import QuantizedWeight

# Processors without VNNI clip the sum of two products to 16 bits. Products of weights of 8 bits never reach that with
# inputs of 7 bits, and those of inputs of 8 bits never with weights of 7 bits around the middle.
CLIPPED = (1 << 15) - 1
LEVELS, LEVELS_WITHOUT_VNNI = 255, 127  # largest codes of inputs
MOST_WEIGHT = 127  # largest code of a weight
# Of fewer products for each input, or fewer columns, rounding the inputs takes the time that is saved.
FEWEST_PRODUCTS, FEWEST_COLUMNS = 256, 128
BLOCK_BYTES = 1 << 20  # of inputs that are encoded at a time: more would not fit the processor's cache
COARSER = 1.1  # step of the codes, relative to the finest, from which on the zero is chosen anew
_BEYOND = 0.49  # of a step: inputs beyond the codes by less than half a step are rounded to the last one


class _Convolution(nn.Module):
    """A convolution of codes.

    Args:
        layer: Convolution that `integers_are_faster` holds for; its bias is read at each call.
        scale: Step of the weights' codes, float32 [rows].
    """

    def __init__(self, layer: nn.Conv2d, scale: Tensor) -> None:
        super().__init__()
        self._layer, self._scale = layer, scale
        self._zeros = torch.zeros(len(scale), dtype=torch.int32)
        self._zero, self._packed = 0, torch.empty(0)

    def _pack(self, codes: Tensor, zero: int, shape: torch.Size) -> None:
        """Prepare the weights, int8, for inputs of a shape like this one, whose code `zero` is 0."""
        self._zero = zero
        # Neither the inputs' scale, 1.0 here, nor their number enters the result.
        self._packed = torch.ops.onednn.qconv_prepack(codes, self._scale, 1.0, zero, *self._geometry(), shape)

    def _convolve(self, x: Tensor, step: float) -> Tensor:
        """Return the outputs of inputs that are rounded to codes with this step."""
        codes = torch.empty_like(x, dtype=torch.uint8)
        half = torch.tensor(self._zero + 0.5)  # codes are cut off after the point
        at_once = max(1, BLOCK_BYTES // (x[0].numel() * x.itemsize))
        for first in range(0, len(x), at_once):
            images = slice(first, first + at_once)
            codes[images] = torch.add(half, x[images], alpha=1 / step)
        return torch.ops.onednn.qconv2d_pointwise(  # type: ignore[no-any-return]
            *(codes, step, self._zero),
            *(self._packed, self._scale, self._zeros, self._layer.bias),
            *self._geometry(),
            *(1.0, 0, torch.float32),  # outputs are not rounded
            *("none", [], ""),  # nothing is computed afterwards
        )

    def _geometry(self) -> tuple[Any, ...]:
        layer = self._layer
        return layer.stride, layer.padding, layer.dilation, layer.groups


class RoundedConvolution(_Convolution):
    """A convolution that rounds its weights, on a scale for each row, and its inputs, on a scale for each batch.

    Args:
        layer: Convolution in float32 that `integers_are_faster` holds for. Not modified.
        most: Largest code of an input, see `levels`.
    """

    def __init__(self, layer: nn.Conv2d, most: int) -> None:
        scale = layer.weight.flatten(1).abs().amax(1) / MOST_WEIGHT
        super().__init__(layer, torch.where(scale > 0, scale, 1.0))
        self._most = most

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [b, rows, H', W'] of inputs [b, C, H, W], float32."""
        least, greatest = min(float(x.amin()), 0.0), max(float(x.amax()), 0.0)  # 0, which pads, must have a code
        finest = (greatest - least) / self._most
        if not 0 < finest < float("inf"):  # constant inputs, and such as the Hessian is refused for
            return self._layer(x)  # type: ignore[no-any-return]
        if not self._packed.numel() or self._step(least, greatest) > COARSER * finest:
            codes = (self._layer.weight / self._scale[:, None, None, None]).round_().to(torch.int8)
            self._pack(codes, round(-least / finest), x.shape)
        return self._convolve(x, self._step(least, greatest))

    def _step(self, least: float, greatest: float) -> float:
        """Return the smallest step of the codes with which all inputs are rounded by half a step at most."""
        below, above = max(self._zero, _BEYOND), max(self._most - self._zero, _BEYOND)
        return max(-least / below, greatest / above)


class CodedConvolution(_Convolution):
    """A convolution with quantized weights, of inputs that are on a grid.

    Args:
        layer: Convolution that holds the decoded weights. Not modified.
        weight: Their codes, see `fits`.
        grid: Grid of the inputs: unsigned codes of 8 bits.
    """

    def __init__(self, layer: nn.Conv2d, weight: QuantizedWeight, grid: ActivationGrid) -> None:
        super().__init__(layer, weight.scale)
        self._grid = grid
        self._codes = _centered(weight).to(torch.int8).reshape(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [b, rows, H', W'] of inputs [b, C, H, W], float32."""
        if not self._packed.numel():
            self._pack(self._codes, self._grid.zero_point, x.shape)
            self._codes = torch.empty(0)
        return self._convolve(x, self._grid.scale)

    @staticmethod
    def fits(weight: QuantizedWeight, grid: ActivationGrid) -> bool:
        """Return whether this processor sums the products of such codes exactly.

        Args:
            weight: Quantized weight.
            grid: Grid of the inputs.
        """
        if not weight.is_uniform or grid.signed or grid.bits != 8:
            return False
        most = MOST_WEIGHT if levels() == LEVELS else CLIPPED // (2 * LEVELS)
        centered = _centered(weight)
        return -most <= int(centered.min()) and int(centered.max()) <= most


def _centered(weight: QuantizedWeight) -> Tensor:
    """Return the codes less their zero points, int16 [rows, columns]."""
    return weight.codes.to(torch.int16) - weight.zero_point[:, None].to(torch.int16)


def with_rounded_convolutions(
    modules: Mapping[str, nn.Module], layers: Mapping[str, QuantizableLayer]
) -> dict[str, nn.Module]:
    """Return the modules of a network with rounded convolutions where those are faster.

    Args:
        modules: Modules of the network by name.
        layers: Its quantizable layers by name.
    """
    rounded = {
        name: RoundedConvolution(layer, levels())
        for name, layer in layers.items()
        if isinstance(layer, nn.Conv2d) and integers_are_faster(layer)
    }
    return {**modules, **rounded}


def integers_are_faster(layer: QuantizableLayer) -> bool:
    """Return whether a layer is a convolution that this processor computes faster in integers.

    Args:
        layer: The layer.
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or layer.padding_mode != "zeros":
        return False
    if layer.weight.device.type != "cpu" or isinstance(layer.padding, str):
        return False
    products = layer.weight[:, 0].numel() // (layer.stride[0] * layer.stride[1])  # for each input
    columns = layer.weight[0].numel()
    return products >= FEWEST_PRODUCTS and columns >= FEWEST_COLUMNS and levels() > 0


@functools.cache
def levels() -> int:
    """Return the largest code of inputs whose products this processor sums exactly and fast; 0 if there is none.

    torch offers these convolutions to compiled models only, so a version may lack them.
    """
    if not may_have_integer_kernels():
        return 0
    for most in (LEVELS, LEVELS_WITHOUT_VNNI):
        if _is_exact(most):
            return most
    return 0


def _is_exact(most: int) -> bool:
    """Return whether the largest sums of two products, with codes of inputs up to `most`, are exact."""
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).requires_grad_(False)
    layer.weight.fill_(1.0)
    layer.weight[1::2].neg_()
    x = torch.ones(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            found = RoundedConvolution(layer, most)(x)
    except (AttributeError, RuntimeError, TypeError):  # no such operation, or with other arguments
        return False
    return torch.allclose(found, layer(x), rtol=1e-4)
