"""Schedule of the calibration images: how many each layer sees, and how many are processed together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer, positions_of
from edged.models.graph import Program, Values

# Columns of X per input of the layer; more than 32 lower the held-out layer loss by less than 2 %.
OVERSAMPLING = 32
# Neighboring positions of one image are correlated, so even layers with large maps see this many images.
MIN_IMAGES = 128
MAX_BATCH = 128
# Batches of more images are limited to what fits a processor's cache, by the bytes of the sums that each is added to.
ENOUGH_IMAGES = 32
LEAST_CACHED_BYTES, MOST_CACHED_BYTES = 4 << 20, 8 << 20


@dataclass(frozen=True)
class Step:
    """The images and the memory needs of one cut.

    Attributes:
        images: Number of images that its layers see; never fewer than at the preceding cut.
        batch: Number of images that are processed together; a multiple of that of the preceding cut.
        live_bytes: Bytes of the values that are live at the cut, per image, as float32.
        output_bytes: Bytes of the outputs of the layers at the cut, per image.
        sums_bytes: Bytes of the largest Hessian at the cut.
        peak_bytes: Most bytes that are alive at once between this cut and the next, per image.
    """

    images: int
    batch: int
    live_bytes: int
    output_bytes: int
    sums_bytes: int
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
    """Create the step of each cut, with a batch of one image.

    Early layers have few inputs and large maps, so a few images suffice for n/d >= oversampling.

    Args:
        program: Program of `model`.
        model: Network, which is run once to determine the sizes of its maps.
        layers: Quantizable layers of the network by name.
        image: One network input [1, C, H, W]. Not modified.
        available: Number of calibration images.
        oversampling: Target for n/d, columns of X per input.
        min_images: Minimum number of images that a layer sees.
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
            sums = max(4 * _inputs(layer) ** 2 for layer, _ in here)
            steps.append(Step(needed, 1, _bytes(values), outputs, sums, 0))
    # Beyond the last cut only its layers are run.
    peaks.append(steps[-1].live_bytes + steps[-1].output_bytes)
    return [replace(step, peak_bytes=peak) for step, peak in zip(steps, peaks[1:], strict=True)]


def with_batches(steps: list[Step], batch_bytes: int) -> list[Step]:
    """Set each step's batch to the largest power of two that fits.

    Maps shrink towards the end of the network, where larger batches avoid slow products of small matrices. With more
    than ENOUGH_IMAGES nothing is gained by a batch larger than the sums that it is added to, or than a cache: in a
    CIFAR ResNet-20 batches of 8 MiB in place of 4 MiB took the same time, and a third more memory.

    Args:
        steps: Steps in order of execution. Not modified.
        batch_bytes: Maximum bytes of values of a batch that are alive at once; a batch has at least one image.
    """
    batch, sized = MAX_BATCH, []
    for step in reversed(steps):
        while batch > 1 and _too_large(batch, step, batch_bytes):
            batch //= 2
        sized.append(replace(step, batch=batch))
    return sized[::-1]


def _too_large(batch: int, step: Step, batch_bytes: int) -> bool:
    cached = min(max(step.sums_bytes, LEAST_CACHED_BYTES), MOST_CACHED_BYTES)
    return batch * step.peak_bytes > (batch_bytes if batch <= ENOUGH_IMAGES else min(batch_bytes, cached))


class _Peak:
    def __init__(self) -> None:
        self.bytes = 0

    def watch(self, alive: Values) -> None:
        self.bytes = max(self.bytes, _bytes(alive))


def _bytes(values: Values) -> int:
    return sum(value.nbytes for value in values.values())


def _inputs(layer: QuantizableLayer) -> int:
    return layer.weight[0].numel()
