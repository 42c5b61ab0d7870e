"""Layers rewritten as equal ones that ONNX Runtime's integer kernels compute faster.

    stride 2, 3 channels, 6x6  ->  blocks of 2x2 pixels joined to 12 channels, stride 1, 3x3
    1x1 to a detector's rows   ->  a matrix product over pixels, [batch * height * width, channels]

The fast kernel of a convolution takes channels in fours: with 3, the rows of a matrix are gathered first, which takes
longer than all the other layers of a YOLOv5n together. A matrix product has outputs in float, also of codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from edged.execution.biases import MOST_STEPS
from edged.execution.graph import Conv, Pair, Predictions, Weighted
from edged.execution.grids import Grids
from edged.execution.placement import Placement

CHANNELS_AT_A_TIME = 4
LARGEST_CODE = 127


@dataclass(frozen=True)
class JoinedPixels:
    """A strided convolution over blocks of pixels that are joined to channels: it computes the same.

    Attributes:
        layer: Name of the convolution.
        block: Side of a block, the stride of the convolution; the stride over blocks is 1.
        front: Zeros in front of the weight's height and width.
        back: Zeros after them.
        split: Shape of the weight with these zeros, height and width divided into blocks and the pixels in them.
        pads: Blocks of padding at the top, the left, the bottom and the right.
    """

    layer: str
    block: int
    front: Pair
    back: Pair
    split: tuple[int, int, int, int, int, int]
    pads: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight over blocks: its channels are the rows of a block, its columns, then the channels."""
        rows, channels, height, _, width, _ = self.split
        return rows, channels * self.block**2, height, width


SPLIT_ORDER = (0, 3, 5, 1, 2, 4)  # axes of a divided weight in the order of SpaceToDepth's channels


def joined_pixels(placement: Placement, size: int) -> JoinedPixels | None:
    """Return how the convolution over the network's input computes faster, or None if it does not.

    Args:
        placement: The values that are carried as codes.
        size: Side of the network's input in pixels.
    """
    graph = placement.graph
    readers = graph.readers()[graph.input]
    node = readers[0]
    if len(readers) != 1 or not isinstance(node, Conv) or not _on_codes(placement, node):
        return None
    rows, channels = node.weight.values.shape[:2]
    block, other = node.stride
    in_fours = channels % CHANNELS_AT_A_TIME == 0 or channels * block**2 % CHANNELS_AT_A_TIME
    if block != other or node.groups != 1 or size % block or in_fours:
        return None
    (front, back, height, above, below), (left, right, width, before, after) = (
        _blocks(node, axis, size) for axis in (0, 1)
    )
    if min(below, after) < 0:
        return None
    split = (rows, channels, height, block, width, block)
    return JoinedPixels(node.name, block, (front, left), (back, right), split, (above, before, below, after))


def _blocks(node: Conv, axis: int, size: int) -> tuple[int, int, int, int, int]:
    """Return for one axis the zeros in front of and after the weight, its blocks, and the padding by blocks."""
    side, block, padding = node.weight.values.shape[2 + axis], node.stride[axis], node.padding[axis]
    before = -(-padding // block)
    front = before * block - padding
    back = -(front + side) % block
    blocks = (front + side + back) // block
    outputs = (size + 2 * padding - side) // block + 1
    return front, back, blocks, before, outputs - size // block - before + blocks - 1


def products_of_codes(placement: Placement, grids: Grids) -> frozenset[str]:
    """Return the output layers of a detector that can multiply codes: they compute in float from codes otherwise.

    The sum of the products is exact and becomes a float without being rounded to a grid, so no accuracy is lost.

    Args:
        placement: The values that are carried as codes.
        grids: Grid of each of `placement.values`.
    """
    heads = {name for node in placement.graph.nodes if isinstance(node, Predictions) for name in node.inputs}
    return frozenset(
        node.name
        for node in placement.graph.weighted()
        if node.name in heads & placement.float_layers and isinstance(node, Conv) and _fits(placement, grids, node)
    )


def _fits(placement: Placement, grids: Grids, node: Conv) -> bool:
    owner, quantized = placement.owners.get(node.inputs[0]), node.weight.quantized
    of_points = tuple(node.weight.values.shape[2:]) == (1, 1) and node.stride == (1, 1) and node.padding == (0, 0)
    if owner is None or quantized is None or not of_points or node.groups != 1:
        return False
    whole = quantized.codes.short() - quantized.zero_point.short()[:, None]
    steps = grids[owner].scale * quantized.scale.double() * MOST_STEPS
    return bool(
        whole.min() >= -LARGEST_CODE - 1
        and whole.max() <= LARGEST_CODE
        and (quantized.scale > 0).all()
        and (node.bias.abs() < steps).all()
    )


def _on_codes(placement: Placement, node: Weighted) -> bool:
    return node.inputs[0] in placement.owners and node.name not in placement.float_layers
