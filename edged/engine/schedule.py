"""How many images each layer needs to see."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer
from edged.models.graph import Program

# Columns of X per input of the layer: from 32 on, more lower the held-out layer loss by less than 2 %.
OVERSAMPLING = 32
# Neighbouring positions of one image resemble each other: however large the map, see this many images.
MIN_IMAGES = 128


def images_per_cut(
    program: Program,
    model: nn.Module,
    layers: Mapping[str, QuantizableLayer],
    image: Tensor,
    available: int,
    oversampling: float = OVERSAMPLING,
    min_images: int = MIN_IMAGES,
) -> list[int]:
    """Images for the layers at each cut; never fewer than at the cut before.

    Early layers have few inputs and large maps, so that few images give them n/d >= oversampling.

    Args:
        program: The steps of `model`.
        model: Run once to learn the maps' sizes.
        layers: Its layers by name.
        image: One network input [1, C, H, W].
        available: Images there are.
        oversampling: Wanted n/d, columns of X per input.
        min_images: Fewest images a layer sees.
    """
    modules = dict(model.named_modules())
    values, start, needed, counts = {program.input: image}, 0, min(min_images, available), []
    with torch.inference_mode():
        for cut in program.cuts:
            values, start = program.run(values, start, cut, modules), cut.index
            wanted = max(
                math.ceil(oversampling * _inputs(layers[name]) / _positions(layers[name], values[cut.source]))
                for name in cut.layers
            )
            needed = min(max(needed, wanted), available)
            counts.append(needed)
    return counts


def _inputs(layer: QuantizableLayer) -> int:
    return layer.weight[0].numel()


def _positions(layer: QuantizableLayer, x: Tensor) -> int:
    """Columns of X that one image gives."""
    if isinstance(layer, nn.Linear):
        return x[0].numel() // x.shape[-1]
    with torch.device("meta"):
        weight = torch.empty(layer.weight.shape)
        shape = nn.functional.conv2d(
            torch.empty(x.shape), weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
        ).shape
    return shape[2] * shape[3]
