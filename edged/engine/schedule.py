"""How many images each layer needs to see, and how many of them go through the network at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer, positions_of
from edged.models.graph import Program, Values

# Columns of X per input of the layer: from 32 on, more lower the held-out layer loss by less than 2 %.
OVERSAMPLING = 32
# Neighbouring positions of one image resemble each other: however large the map, see this many images.
MIN_IMAGES = 128
MAX_BATCH = 128


@dataclass(frozen=True)
class Step:
    """What happens at one cut.

    Attributes:
        images: Images that its layers see; never fewer than at the cut before.
        batch: Images that are worked on together; a multiple of that of the cut before.
        live_bytes: Values that are live at the cut, for one image, float32.
        output_bytes: Outputs of the layers at the cut, for one image.
        peak_bytes: Most that is alive at once between this cut and the next, for one image.
    """

    images: int
    batch: int
    live_bytes: int
    output_bytes: int
    peak_bytes: int


def schedule(
    program: Program,
    model: nn.Module,
    layers: Mapping[str, QuantizableLayer],
    image: Tensor,
    available: int,
    oversampling: float = OVERSAMPLING,
    min_images: int = MIN_IMAGES,
) -> list[Step]:
    """A step for each cut, with one image at a time.

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
    values: Values = {program.input: image}
    steps: list[Step] = []
    start, needed, peaks = 0, min(min_images, available), []
    with torch.inference_mode():
        for cut in program.cuts:
            peak = _Peak()
            values = program.run(values, start, cut, modules, peak.watch)
            peaks.append(peak.bytes)
            start = cut.index
            here = [(layers[name], positions_of(layers[name], values[cut.source])) for name in cut.layers]
            wanted = max(math.ceil(oversampling * _inputs(layer) / positions) for layer, positions in here)
            needed = min(max(needed, wanted), available)
            outputs = sum(4 * layer.weight.shape[0] * positions for layer, positions in here)
            steps.append(Step(needed, 1, _bytes(values), outputs, 0))
    # Nothing is run beyond the last cut but its layers.
    peaks.append(steps[-1].live_bytes + steps[-1].output_bytes)
    return [replace(step, peak_bytes=peak) for step, peak in zip(steps, peaks[1:], strict=True)]


def with_batches(steps: list[Step], batch_bytes: int) -> list[Step]:
    """The steps with as many images together as fit, in powers of two.

    Maps shrink towards the end, and there more images go together: products of small matrices are slow.

    Args:
        steps: In order of execution.
        batch_bytes: Most bytes of values that a batch may have alive at once; one image is always taken.
    """
    batch, sized = MAX_BATCH, []
    for step in reversed(steps):
        while batch > 1 and batch * step.peak_bytes > batch_bytes:
            batch //= 2
        sized.append(replace(step, batch=batch))
    return sized[::-1]


class _Peak:
    def __init__(self) -> None:
        self.bytes = 0

    def watch(self, alive: Values) -> None:
        self.bytes = max(self.bytes, _bytes(alive))


def _bytes(values: Values) -> int:
    return sum(value.nbytes for value in values.values())


def _inputs(layer: QuantizableLayer) -> int:
    return layer.weight[0].numel()
