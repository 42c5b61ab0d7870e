"""Second moments of a layer's inputs, summed over batches. X [d, n] holds the inputs as columns.

    G = X X^T      the interaction of errors in different weights
    s = X 1        mean inputs, for BatchNorm and biases
    B = Y X^T      with target outputs Y [rows, n] that the layer should compute from these inputs

Three classes compute the same sums: `DenseMoments` for linear layers and 1x1 convolutions, `LagMoments`
(conv_moments.py) for plain 3x3 convolutions, and `UnfoldMoments` for all other convolutions. Y X^T of a convolution is
its weight gradient for output gradients Y, which needs no patches for any geometry. Two more (integer_moments.py) sum
inputs that are rounded to integers, where processors are faster with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edged.calibration.conv_moments import LagMoments, lag_elements
from edged.calibration.geometry import QuantizableLayer, conv_columns, is_pointwise, is_same_3x3, padded, strided
from edged.calibration.gram import BLOCK, MAX_PATCH_BYTES, add_gram, images_at_once, mirror
from edged.calibration.integer_moments import IntegerColumnMoments, IntegerLagMoments, integers_are_faster
from edged.matmul import matmul_nt, shifted_products


class Moments(Protocol):
    """Sums over the batches added so far.

    Attributes:
        positions: Number n of columns of X so far: images times output positions.
    """

    positions: int

    def update(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Add a batch to the sums.

        Args:
            x: Layer inputs, [b, C, H, W] for a convolution, [b, ..., d] for a linear layer. Not modified.
            targets: Target outputs Y of this batch, in the layer's output shape; the same number in every batch.
        """

    def take_gram(self, scale: float = 1.0) -> Tensor:
        """Return scale * X X^T, float32 [conv_groups, d, d], and release its sums; it can be called only once."""

    def total(self) -> Tensor:
        """Return the sum of inputs X 1, float32 [conv_groups, d]."""

    def cross(self, target: int) -> Tensor:
        """Return Y X^T of the target with this index, float32 [conv_groups, rows / conv_groups, d]."""


def moments_for(layer: QuantizableLayer, *, integers: bool | None = None) -> Moments:
    """Create the moments that are fastest for a layer's geometry.

    Args:
        layer: The layer.
        integers: Whether its inputs are rounded to integers of 8 bits; None for what is faster on this processor.
    """
    if integers is None:
        integers = integers_are_faster(layer)
    if isinstance(layer, nn.Conv2d) and is_same_3x3(layer):
        return (IntegerLagMoments if integers else LagMoments)(layer.in_channels, layer.weight.device)
    if integers:
        return IntegerColumnMoments(layer)
    if isinstance(layer, nn.Linear) or is_pointwise(layer):
        return DenseMoments(layer)
    return UnfoldMoments(layer)


@dataclass(frozen=True)
class MomentsBytes:
    """The memory that the moments of a layer take, in bytes.

    Attributes:
        gram: Sums that `take_gram` releases.
        cross: Sums of outputs times inputs, for one target.
        scratch: Temporary memory while a batch is added.
    """

    gram: int
    cross: int
    scratch: int


def moments_bytes(layer: QuantizableLayer) -> MomentsBytes:
    """Return the memory that the moments from `moments_for(layer)` will take."""
    d, rows = layer.weight[0].numel(), layer.weight.shape[0]
    cross = 4 * rows * d
    if isinstance(layer, nn.Conv2d) and is_same_3x3(layer):
        gram = 4 * lag_elements(layer.in_channels)
        return MomentsBytes(gram, cross, gram + cross)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    patches = 0 if isinstance(layer, nn.Linear) or is_pointwise(layer) else 2 * MAX_PATCH_BYTES
    product = 4 * d * (d if d < 2 * BLOCK else BLOCK)
    return MomentsBytes(4 * groups * d**2, cross, product + cross + patches)


def hessian(moments: Moments) -> Tensor:
    """Compute H = 2/n X X^T, float32 [conv_groups, d, d], in squared input units.

    The Gram matrix is taken out of `moments`, so this can be called only once.
    """
    return moments.take_gram(2 / max(moments.positions, 1))


class DenseMoments:
    """Moments of a linear layer or a pointwise convolution, whose inputs are the columns."""

    def __init__(self, layer: QuantizableLayer) -> None:
        self.positions = 0
        self._layer = layer
        width = layer.weight.shape[1]
        self._gram = torch.zeros(width, width, device=layer.weight.device)
        self._total = torch.zeros(width, device=layer.weight.device)
        self._cross: list[Tensor] = []

    def update(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Add a batch of inputs [b, d, H, W] or [b, ..., d] and targets to the sums."""
        if isinstance(self._layer, nn.Conv2d):
            x = strided(self._layer, x)
        columns = self._positions_by_channels(x).t()
        self.positions += columns.shape[1]
        add_gram(self._gram, columns)
        self._total += columns.sum(1)
        outputs = [self._positions_by_channels(y).t() for y in targets]
        self._cross = _summed(self._cross, [matmul_nt(y, columns) for y in outputs])

    def take_gram(self, scale: float = 1.0) -> Tensor:
        """Return scale * X X^T, float32 [1, d, d], and release its sums; it can be called only once."""
        gram, self._gram = self._gram, self._gram.new_empty(0)
        return mirror(gram).mul_(scale)[None]

    def total(self) -> Tensor:
        """Return the sum of inputs X 1, float32 [1, d]."""
        return self._total[None]

    def cross(self, target: int) -> Tensor:
        """Return Y X^T of the target with this index, float32 [1, rows, d]."""
        return self._cross[target][None]

    def _positions_by_channels(self, x: Tensor) -> Tensor:
        if isinstance(self._layer, nn.Conv2d):
            x = x.permute(0, 2, 3, 1)
        return x.reshape(-1, x.shape[-1]).float()


class UnfoldMoments:
    """Moments of any convolution, computed from its patches."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.positions = 0
        self._layer = layer
        width = layer.weight[0].numel()
        self._gram = torch.zeros(layer.groups, width, width, device=layer.weight.device)
        self._total = torch.zeros(layer.groups, width, device=layer.weight.device)
        self._cross: list[Tensor] = []

    def update(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Add a batch of inputs [b, C, H, W] and targets [b, rows, H', W'] to the sums."""
        x, layer = padded(self._layer, x.float()), self._layer
        for image in torch.split(x, images_at_once(layer, x.shape[2:], x.itemsize)):
            columns = conv_columns(layer, image)
            self.positions += columns.shape[2]
            for upper, group in zip(self._gram, columns, strict=True):
                add_gram(upper, group)
        # Patches are linear in the image, so the sum over patches of the summed image is the same at 1/b of the work.
        del columns  # release the last patches before the next ones are allocated
        self._total += conv_columns(layer, x.sum(0, keepdim=True)).sum(2)
        sums = [
            shifted_products(y.float(), x, layer.kernel_size, layer.stride, (0, 0), layer.dilation, layer.groups)
            for y in targets
        ]
        self._cross = _summed(self._cross, [total.reshape(layer.groups, -1, self._gram.shape[1]) for total in sums])

    def take_gram(self, scale: float = 1.0) -> Tensor:
        """Return scale * X X^T, float32 [conv_groups, d, d], and release its sums; it can be called only once."""
        gram, self._gram = self._gram, self._gram.new_empty(0)
        for upper in gram:
            mirror(upper)
        return gram.mul_(scale)

    def total(self) -> Tensor:
        """Return the sum of inputs X 1, float32 [conv_groups, d]."""
        return self._total

    def cross(self, target: int) -> Tensor:
        """Return Y X^T of the target with this index, float32 [conv_groups, rows / conv_groups, d]."""
        return self._cross[target]


def _summed(totals: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [total.add_(part) for total, part in zip(totals, new, strict=True)] if totals else new
