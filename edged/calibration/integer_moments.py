"""Moments of inputs that are rounded to integers of 8 bits, whose products processors sum exactly and faster.

Each channel of a batch is rounded on a scale of its own, x = scale * (code + zero) + e. Then

    X X^T  ~  scale * (C + zero) (C + zero)^T * scale^T,   with the diagonal of X X^T itself

The rounding errors e of a channel are uncorrelated with other channels, so their products vanish in sums over many
positions. On the diagonal they would add up, as more damping, by which weights that correct the errors of earlier
layers would shrink. So the diagonal is summed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edged.calibration.conv_moments import OFFSETS, LagMoments, edge_of, extent_of
from edged.calibration.geometry import QuantizableLayer, is_same_3x3, padded
from edged.calibration.gram import images_at_once, mirror, row_blocks
from edged.matmul import may_have_integer_kernels

# Processors with VNNI sum products of 8-bit codes. Others clip the sum of two products to 16 bits, which 7-bit codes
# never reach.
LEVELS, LEVELS_WITHOUT_VNNI = 127, 63
MOST_SUMMED = 1 << 15  # products that an int32 holds: 2^31 / (2 * 127)^2
# Of smaller products, rounding the inputs takes more time than is saved.
FEWEST_CHANNELS, FEWEST_COLUMNS = 128, 256


@functools.cache
def levels() -> int:
    """Return the largest code whose products this processor sums exactly and fast; 0 if there is none."""
    if not may_have_integer_kernels():
        return 0
    for most in (LEVELS, LEVELS_WITHOUT_VNNI):
        full = torch.full((64, 64), most, dtype=torch.int8)
        if bool((torch._int_mm(full, full) == 64 * most**2).all()):
            return most
    return 0


def integers_are_faster(layer: QuantizableLayer) -> bool:
    """Return whether the moments of a layer's inputs are summed faster from integers.

    Args:
        layer: The layer.
    """
    if layer.weight.device.type != "cpu" or not levels():
        return False
    if isinstance(layer, nn.Linear):
        return layer.in_features >= FEWEST_COLUMNS
    if layer.groups > 1:
        return False
    return layer.in_channels >= FEWEST_CHANNELS if is_same_3x3(layer) else layer.weight[0].numel() >= FEWEST_COLUMNS


class IntegerLagMoments(LagMoments):
    """Moments of a 3x3 convolution that keeps the map's size; see `LagMoments`.

    Codes are laid out as [H, W + 2, b, C], with zero pixels in the last two columns. Pixels that are a lag apart are
    then a fixed number of rows apart in a matrix [H (W + 2) b, C], so no lag needs a copy.
    """

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        super().__init__(channels, device)
        self._powers = {side: torch.zeros_like(total) for side, total in self._totals.items()}

    def update(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Add a batch of inputs [b, C, H, W] and targets [b, rows, H, W] to the sums."""
        pixels = x.float().permute(2, 3, 0, 1)
        height, width, batch, _ = pixels.shape
        self.positions += height * width * batch
        codes, scale = _rounded(pixels, 2)
        scales, flat = torch.outer(scale, scale), codes.flatten(0, 2)
        for down, right in [(0, 0), (0, 1), (0, 2), *((down, right) for down in (1, 2) for right in range(-2, 3))]:
            _add(self._lags[:, :, down, right + 2], *_apart(flat, flat, (down * (width + 2) + right) * batch), scales)
        self._sum_floats("", pixels)
        for side, lags in self._edges.items():
            line = _line(codes[:, :width], side)
            for lag in range(max(extent_of(side))):
                _add(lags.flatten(2)[:, :, lag], *_apart(line, line, lag * batch), scales)
            self._sum_floats(side, _line(pixels, side))
        self._cross = self._cross or [self._zeros(y.shape[1], len(scale), 3, 3, y.device) for y in targets]
        for total, y in zip(self._cross, targets, strict=True):
            for outputs, output_scale in _in_parts(y.float().permute(2, 3, 0, 1), 2):
                scales = torch.outer(output_scale, scale)
                for down, right in OFFSETS:
                    pair = _apart(outputs.flatten(0, 2), flat, (down * (width + 2) + right) * batch)
                    _add(total[:, :, down + 1, right + 1], *pair, scales)

    def take_gram(self, scale: float = 1.0) -> Tensor:
        """Return scale * X X^T, float32 [1, d, d], and release its sums; it can be called only once."""
        for side, power in self._powers.items():
            matrix = self._edges[side][:, :, 0, 0] if side else self._lags[:, :, 0, 2]
            matrix.diagonal().copy_(power)
        return super().take_gram(scale)

    @staticmethod
    def _zeros(rows: int, channels: int, height: int, width: int, device: torch.device | None) -> Tensor:
        """Return sums of zeros [rows, channels, height, width], in which the matrix of each lag is contiguous."""
        return torch.zeros(height, width, rows, channels, device=device).permute(2, 3, 0, 1)

    def _sum_floats(self, side: str, pixels: Tensor) -> None:
        rows = pixels.reshape(-1, pixels.shape[-1])
        self._totals[side] += rows.sum(0)
        self._powers[side] += rows.square().sum(0)


class IntegerColumnMoments:
    """Moments of a linear layer, or of any convolution without conv groups, from its patches.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: QuantizableLayer) -> None:
        self.positions = 0
        self._layer = layer
        self._shape = layer.weight.shape[1:]  # [C, kh, kw], or [d]
        width = self._shape.numel()
        # Columns are patch offsets of channels here, unlike in a weight, where they are channels of offsets.
        self._gram = torch.zeros(width, width, device=layer.weight.device)
        self._total, self._power = (torch.zeros(width, device=layer.weight.device) for _ in range(2))
        self._cross: list[Tensor] = []

    def update(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Add a batch of inputs [b, C, H, W] or [b, ..., d] and targets to the sums."""
        x = x.float()
        if isinstance(self._layer, nn.Conv2d):
            pixels = padded(self._layer, x).permute(0, 2, 3, 1)
        else:
            x, targets = x.reshape(-1, x.shape[-1]), [y.reshape(-1, y.shape[-1]) for y in targets]
            pixels = x[None, None]
        self._total += self._patches(pixels.sum(0, keepdim=True)).sum(0)
        self._power += self._patches(pixels.square().sum(0, keepdim=True)).sum(0)
        codes, scale = _rounded(pixels)
        outputs = [_in_parts(y.float().permute(0, 2, 3, 1) if y.dim() == 4 else y.float()[None, None]) for y in targets]
        scale = scale.repeat(len(self._total) // len(scale))
        self._cross = self._cross or [self._gram.new_zeros(len(parts[0][1]), len(scale)) for parts in outputs]
        at_once = images_at_once(self._layer, codes.shape[1:3], codes.itemsize)
        for start in range(0, len(codes), at_once):
            images = slice(start, start + at_once)
            columns = self._columns(codes[images])
            self.positions += len(columns)
            for rows in row_blocks(len(scale)):
                block = self._gram[rows, rows.start :]
                left = torch.cat([columns[:, rows], columns[:, len(scale) :]], dim=1)
                _add(block, left, columns[:, rows.start :], torch.outer(scale[rows], scale[rows.start :]))
            for total, parts in zip(self._cross, outputs, strict=True):
                for y, y_scale in parts:
                    _add(total, y[images].flatten(0, 2), columns, torch.outer(y_scale, scale))

    def take_gram(self, scale: float = 1.0) -> Tensor:
        """Return scale * X X^T, float32 [1, d, d], and release its sums; it can be called only once."""
        gram, self._gram = self._gram, self._gram.new_empty(0)
        mirror(gram).mul_(scale).diagonal().copy_(self._power * scale)
        return self._as_weight(self._as_weight(gram).t()).t()[None]

    def total(self) -> Tensor:
        """Return the sum of inputs X 1, float32 [1, d]."""
        return self._as_weight(self._total)[None]

    def cross(self, target: int) -> Tensor:
        """Return Y X^T of the target with this index, float32 [1, rows, d]."""
        return self._as_weight(self._cross[target])[None]

    def _patches(self, pixels: Tensor) -> Tensor:
        """Return the patches [positions, kh * kw * C] of padded pixels [b, H, W, C]."""
        layer = self._layer
        if isinstance(layer, nn.Linear):
            return pixels.flatten(0, 2)
        down, across = (
            (side - dilation * (kernel - 1) - 1) // stride * stride + 1
            for side, kernel, stride, dilation in zip(
                pixels.shape[1:3], layer.kernel_size, layer.stride, layer.dilation, strict=True
            )
        )
        shifted = [
            pixels[:, row : row + down : layer.stride[0], column : column + across : layer.stride[1]]
            for row in range(0, layer.kernel_size[0] * layer.dilation[0], layer.dilation[0])
            for column in range(0, layer.kernel_size[1] * layer.dilation[1], layer.dilation[1])
        ]
        return torch.cat(shifted, dim=3).flatten(0, 2)

    def _columns(self, codes: Tensor) -> Tensor:
        """Return the patches of codes [b, H, W, C], with the column of the zero, if there is one, at the end."""
        channels = self._shape[0]
        patches = self._patches(codes[..., :channels])
        if codes.shape[-1] == channels:
            return patches
        zero = codes[0, 0, 0, -1:].expand(len(patches), 1)
        return torch.cat([patches, zero], dim=1)

    def _as_weight(self, sums: Tensor) -> Tensor:
        """Return sums [..., kh * kw * C] with the columns of a weight, [..., d]."""
        if len(self._shape) == 1:
            return sums
        by_offset = sums.reshape(*sums.shape[:-1], -1, self._shape[0])
        return by_offset.transpose(-1, -2).flatten(-2)


def _line(pixels: Tensor, side: str) -> Tensor:
    """Return the positions of an edge or a corner of pixels [H, W, b, C], as a matrix [positions * b, C]."""
    return edge_of(pixels.permute(2, 3, 0, 1), side).permute(2, 3, 0, 1).flatten(0, 2)


def _apart(left: Tensor, right: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Return the rows i of `left` and i + shift of `right` for which both exist."""
    both = max(0, len(left) - abs(shift))
    return left[max(0, -shift) :][:both], right[max(0, shift) :][:both]


def _rounded(x: Tensor, columns_after: int = 0) -> tuple[Tensor, Tensor]:
    """Round each channel on a scale of its own.

    Args:
        x: Values [H, W, b, C], float32. Not modified.
        columns_after: Columns of zero pixels to append.

    Returns:
        Codes int8 [H, W + columns_after, b, C], and the scale of each channel [C], in units of x per code. Where no
        value is negative, there is one more channel, which holds the zero: the number to add to all codes. Where a
        channel is not finite, the scale is not either.
    """
    axes = tuple(range(x.dim() - 1))
    least, greatest = x.amin(axes), x.amax(axes)
    zero = levels() if bool((least >= 0).all()) else 0
    scale = torch.maximum(greatest, -least) / (levels() + zero)
    height, width, batch, channels = x.shape
    codes = x.new_empty(height, width + columns_after, batch, channels + bool(zero), dtype=torch.int8)
    pixels = codes[..., :channels]
    pixels[:, width:] = -zero
    pixels[:, :width] = (x * torch.where(scale > 0, 1 / scale, 0.0)).round_().sub_(zero)
    codes[..., channels:] = zero
    return codes, scale


def _in_parts(y: Tensor, columns_after: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Round values and then what that leaves, as `_rounded` does: together about 15 bits.

    Weights are fitted to the target outputs, with as many numbers as there are inputs: rounding them to 8 bits would
    cost as much accuracy as a tenth of the weights' own rounding at 4 bits.
    """
    codes, scale = _rounded(y, columns_after)
    channels = len(scale)
    found = (codes[:, : y.shape[1], :, :channels] + codes[:1, :1, :1, channels:].sum(3, keepdim=True).float()) * scale
    return [(codes, scale), _rounded(y - found, columns_after)]


def _add(total: Tensor, left: Tensor, right: Tensor, scales: Tensor) -> None:
    """Add left^T right * scales to `total` [m, n], of codes [positions, m] and [positions, n], after adding zeros."""
    for start in range(0, len(left), MOST_SUMMED):
        rows = slice(start, start + MOST_SUMMED)
        product = _product(left[rows], right[rows])
        m, n = total.shape
        # sum (a + z) (b + z) = sum a b + sum a z + sum z b + sum z z
        entries = product[:m, :n]
        for zeros in (product[:m, n:], product[m:, :n], product[m:, n:]):
            if zeros.numel():
                entries += zeros
        total.addcmul_(entries.float(), scales)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right, of codes [positions, m] and [positions, n], as whole numbers [m, n]."""
    if left.shape[1] == 1:  # torch reads a transposed matrix of one column by wrong strides
        return left.double().t() @ right.double()
    return torch._int_mm(left.t(), right)
