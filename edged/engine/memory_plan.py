"""What the work will need, decided before it starts.

Memory is needed for four things: what is there already (the interpreter, torch, the model), the quantized weights that
come to it, the values that travel from cut to cut, and the larger of what a batch and what solving a layer needs at
any cut. Values can wait on the disk, batches can be smaller, and rows of a layer can be searched few at a time: that
costs speed and changes no result but by rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from edged.calibration.geometry import QuantizableLayer
from edged.calibration.moments import moments_bytes
from edged.device import device_of
from edged.engine.images import AugmentedImages
from edged.engine.schedule import Step, schedule, with_batches
from edged.errors import MemoryLimitError
from edged.memory import give_back_free_memory, limit_bytes, present_bytes
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.quant.layer import solve_bytes
from edged.spec import QuantSpec

# Larger tensors fall out of the processor's caches and take fresh pages from the system at every step.
BATCH_BYTES = 32 << 20
ACTIVATION_MEMORY = 32 << 20  # the disk's cache is hardly slower
# What the work is found to take for each byte that is counted: freed blocks between used ones, oneDNN's own buffers.
OVERHEAD = 1.45
MARGIN = 0.05  # what is found beyond that, at most
SPARING_OVERHEAD = 1.1  # where free blocks go back to the system: nothing is found beyond
KERNEL_BYTES = 32 << 20  # compiled kernels, whatever the size of the network
SPARED_BLOCK = 1 << 20
SHRINK_STEPS = 5  # halvings of the batch and of the rows before a limit is given up


@dataclass(frozen=True)
class Resources:
    """Memory to work in.

    Attributes:
        memory_limit: Bytes of resident memory that the process may have, None for no limit. On a CUDA device bytes of
            its memory, never more than are free.
        batch_bytes: Most bytes of values that a batch may have alive at once.
        activation_memory: Bytes of values that may wait in memory; the others wait on the disk.
    """

    memory_limit: int | None = None
    batch_bytes: int = BATCH_BYTES
    activation_memory: int = ACTIVATION_MEMORY


@dataclass(frozen=True)
class MemoryPlan:
    """How the work is divided.

    Attributes:
        steps: One for each cut.
        activation_memory: Bytes of values that wait in memory.
        rows_at_once: Rows of a layer whose ranges are searched together.
        sparing: Whether free memory is given back at once, which costs time.
        present_bytes: Resident memory before the work; on a CUDA device what tensors take there.
        peak_bytes: Likewise, what the work is expected to reach.
    """

    steps: list[Step]
    activation_memory: int
    rows_at_once: int
    sparing: bool
    present_bytes: int
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "images": max(step.images for step in self.steps),
            "batch_sizes": [step.batch for step in self.steps],
            "images_per_cut": [step.images for step in self.steps],
            "activation_memory": self.activation_memory,
            "rows_at_once": self.rows_at_once,
            "sparing": self.sparing,
            "present_bytes": self.present_bytes,
            "peak_bytes": self.peak_bytes,
        }


def plan_work(
    program: Program, model: nn.Module, images: AugmentedImages, spec: QuantSpec, resources: Resources
) -> MemoryPlan:
    """The fastest plan that fits.

    Args:
        program: The steps of `model`.
        model: Full precision; run on one image.
        images: Calibration images.
        spec: How to quantize.
        resources: Memory to work in.

    Raises:
        MemoryLimitError: Not even the slowest plan fits; names the least limit that would do.
    """
    layers = quantizable_layers(model)
    single = schedule(program, model, layers, images.batch(0, 1), len(images))
    give_back_free_memory()
    device = device_of(model)
    resources = dataclasses.replace(resources, memory_limit=limit_bytes(device, resources.memory_limit))
    present = present_bytes(device)  # after a first pass, which brings torch's code into memory
    least = 0
    for halvings, sparing in _settings(resources):
        rows_at_once = max(spec.rows_at_once >> halvings, 1)
        tried = dataclasses.replace(spec, rows_at_once=rows_at_once)
        steps = with_batches(single, resources.batch_bytes >> halvings)
        overhead = SPARING_OVERHEAD if sparing else OVERHEAD
        counted = _weights_bytes(layers) + _work_bytes(program, layers, tried, steps)
        work = KERNEL_BYTES + int(overhead * counted)
        waiting = min(resources.activation_memory, _waiting_bytes(spec, steps))
        if resources.memory_limit is not None:
            room = resources.memory_limit if sparing else int(resources.memory_limit / (1 + MARGIN))
            waiting = min(waiting, room - present - work)
        if waiting >= 0:
            return MemoryPlan(steps, waiting, rows_at_once, sparing, present, present + work + waiting)
        least = present + work
    raise MemoryLimitError(
        f"a memory limit of {(resources.memory_limit or 0) >> 20} MiB is too little for this model; it takes at least"
        f" {(least >> 20) + 1} MiB"
    )


def _settings(resources: Resources) -> Iterator[tuple[int, bool]]:
    """How often the batch and the rows at once are halved, and whether to be sparing; the fastest first."""
    yield 0, False
    if resources.memory_limit is not None:
        yield from ((halvings, True) for halvings in range(SHRINK_STEPS))


def _weights_bytes(layers: dict[str, QuantizableLayer]) -> int:
    """Decoded float32 weights and their codes."""
    return sum(5 * layer.weight.numel() for layer in layers.values())


def _waiting_bytes(spec: QuantSpec, steps: list[Step]) -> int:
    """Values at a cut, as float16."""
    streams = 2 if spec.propagation > 0 else 1
    return max(streams * step.images * step.live_bytes // 2 for step in steps)


def _work_bytes(program: Program, layers: dict[str, QuantizableLayer], spec: QuantSpec, steps: list[Step]) -> int:
    """The larger of what a batch and what solving a layer takes, at the worst cut."""
    entering, most = 0, 0
    for cut, step in zip(program.cuts, steps, strict=True):
        batch = step.batch * step.peak_bytes
        if spec.propagation > 0:
            batch += step.batch * (step.live_bytes + step.output_bytes)
        # Images that enter run through everything before this cut, as many at a time as at the first.
        batch = max(batch, entering + step.batch * step.live_bytes)
        entering = max(entering, steps[0].batch * step.peak_bytes)
        sums = [moments_bytes(layers[name]) for name in cut.layers]
        kept = sum(each.gram + each.cross for each in sums)
        summing = batch + kept + max(each.scratch for each in sums)
        # The Hessian takes the place of the Gram matrix that it comes from.
        solving = kept + max(
            solve_bytes(layers[name].weight, _groups(layers[name]), spec) - each.gram
            for name, each in zip(cut.layers, sums, strict=True)
        )
        most = max(most, summing, solving)
    return most


def _groups(layer: QuantizableLayer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1
