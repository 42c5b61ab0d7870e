"""Convolutions of inputs and weights that are rounded to 8 bits, which x86 processors compute several times faster.

    W X + bias  ~  scale_W scale_X (W_codes (X_codes - zero)) + bias,   summed exactly in integers

They carry calibration images through the full-precision network where nothing but moments of what arrives is summed.
Each rounding adds an error of about 1e-4 of the outputs' power, which is uncorrelated with them, so neither a Hessian
nor the codes that fit it best change much. Targets are another matter: a layer is fitted to them with as many numbers
as it has inputs, so where there are any, both streams are computed in float32.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer

# Largest codes of inputs. Processors without VNNI clip the sum of two products to 16 bits, which inputs of 7 bits never
# reach.
LEVELS, LEVELS_WITHOUT_VNNI = 255, 127
MOST_WEIGHT = 127  # largest code of a weight
# Of fewer products for each input, or fewer columns, rounding the inputs takes the time that is saved.
FEWEST_PRODUCTS, FEWEST_COLUMNS = 256, 128
BLOCK_BYTES = 1 << 20  # of inputs that are rounded at a time: more would not fit the processor's cache
COARSER = 1.1  # step of the codes, relative to the finest, from which on the zero is chosen anew
_BEYOND = 0.49  # of a step: inputs beyond the codes by less than half a step are rounded to the last one


class IntegerConvolution(nn.Module):
    """A convolution that rounds its weights, on a scale for each row, and its inputs, on a scale for each batch.

    Args:
        layer: Convolution in float32 on the CPU, without conv groups and with zeros as padding. Not modified.
        most: Largest code of an input, see `levels`.
    """

    def __init__(self, layer: nn.Conv2d, most: int) -> None:
        super().__init__()
        self._layer, self._most = layer, most
        scale = layer.weight.flatten(1).abs().amax(1) / MOST_WEIGHT
        self._scale = torch.where(scale > 0, scale, 1.0)
        self._zeros = torch.zeros(len(scale), dtype=torch.int32)
        self._zero, self._packed = 0, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [b, rows, H', W'] of inputs [b, C, H, W], float32."""
        least, greatest = min(float(x.amin()), 0.0), max(float(x.amax()), 0.0)  # 0, which pads, must have a code
        finest = (greatest - least) / self._most
        if not 0 < finest < float("inf"):  # constant inputs, and such as the Hessian is refused for
            return self._layer(x)  # type: ignore[no-any-return]
        step = self._step(least, greatest)
        if not self._packed.numel() or step > COARSER * finest:
            self._zero = round(-least / finest)
            self._packed = self._pack(x)
            step = self._step(least, greatest)
        return torch.ops.onednn.qconv2d_pointwise(  # type: ignore[no-any-return]
            *(self._rounded(x, step), step, self._zero),
            *(self._packed, self._scale, self._zeros, self._layer.bias),
            *_geometry(self._layer),
            *(1.0, 0, torch.float32),  # outputs are not rounded
            *("none", [], ""),  # nothing is computed afterwards
        )

    def _step(self, least: float, greatest: float) -> float:
        """Return the smallest step of the codes with which all inputs are rounded by half a step at most."""
        below, above = max(self._zero, _BEYOND), max(self._most - self._zero, _BEYOND)
        return max(-least / below, greatest / above)

    def _rounded(self, x: Tensor, step: float) -> Tensor:
        codes = torch.empty_like(x, dtype=torch.uint8)
        half = torch.tensor(self._zero + 0.5)  # codes are cut off after the point
        at_once = max(1, BLOCK_BYTES // (x[0].numel() * x.itemsize))
        for first in range(0, len(x), at_once):
            images = slice(first, first + at_once)
            codes[images] = torch.add(half, x[images], alpha=1 / step)
        return codes

    def _pack(self, x: Tensor) -> Tensor:
        codes = (self._layer.weight / self._scale[:, None, None, None]).round_().to(torch.int8)
        # The scale of the inputs does not enter the result.
        return torch.ops.onednn.qconv_prepack(  # type: ignore[no-any-return]
            codes, self._scale, 1.0, self._zero, *_geometry(self._layer), x.shape
        )


def with_integer_convolutions(
    modules: Mapping[str, nn.Module], layers: Mapping[str, QuantizableLayer]
) -> dict[str, nn.Module]:
    """Return the modules of a network with those convolutions replaced that are computed faster in integers.

    Args:
        modules: Modules of the network by name.
        layers: Its quantizable layers by name.
    """
    integers = {
        name: IntegerConvolution(layer, levels())
        for name, layer in layers.items()
        if isinstance(layer, nn.Conv2d) and integers_are_faster(layer)
    }
    return {**modules, **integers}


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
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
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
            found = IntegerConvolution(layer, most)(x)
    except (AttributeError, RuntimeError, TypeError):  # no such operation, or with other arguments
        return False
    return torch.allclose(found, layer(x), rtol=1e-4)


def _geometry(layer: nn.Conv2d) -> tuple[Any, ...]:
    return layer.stride, layer.padding, layer.dilation, layer.groups
