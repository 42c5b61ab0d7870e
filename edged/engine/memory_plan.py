"""Memory plan of a quantization, made before it starts.

Memory is needed for four things: the process before the quantization (interpreter, torch, model), the quantized
weights, the values that are carried from cut to cut, and the larger of the needs of a batch and of solving a layer at
any cut. To save memory, values can be stored on the disk, batches can be smaller, and fewer rows of a layer can be
searched together. This costs speed and changes results only by rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edged.calibration.geometry import QuantizableLayer
from edged.calibration.moments import moments_bytes
from edged.device import device_of
from edged.engine.integer_convolution import integers_are_faster
from edged.engine.schedule import Step, schedule, with_batches
from edged.errors import MemoryLimitError
from edged.memory import give_back_free_memory, limit_bytes, present_bytes
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.quant.layer import solve_bytes
from edged.spec import InputSpec, QuantSpec

# Larger tensors do not fit the processor's caches and take new pages from the system at every step.
BATCH_BYTES = 32 << 20
ACTIVATION_MEMORY = 32 << 20  # the page cache of the disk is hardly slower
# Measured bytes per counted byte: fragmentation of the heap and oneDNN's own buffers.
OVERHEAD = 1.45
MARGIN = 0.05  # largest measured excess over that
SPARING_OVERHEAD = 1.1  # if free blocks are returned to the system
SPARING_MARGIN = 0.02  # the largest measured excess was a hundredth
KERNEL_BYTES = 32 << 20  # compiled kernels, independent of the network's size
# Of the weights in float32, at once: the network that rounds, its graph, models of engines and the engines that are
# compared. An estimate from above, which counts where a limit is set.
COPIES_FOR_RANGES = 6
SPARED_BLOCK = 1 << 20
SHRINK_STEPS = 5  # number of sparing plans to try; each halves the batch and the rows of the one before it


@dataclass(frozen=True)
class Resources:
    """Memory limits of a quantization.

    Attributes:
        memory_limit: Maximum resident memory of the process in bytes, None for no limit. On a CUDA device, maximum
            device memory in bytes, which is never more than is free.
        batch_bytes: Maximum bytes of values of a batch that are alive at once.
        activation_memory: Maximum bytes of values between cuts that are kept in memory; others are stored on the disk.
    """

    memory_limit: int | None = None
    batch_bytes: int = BATCH_BYTES
    activation_memory: int = ACTIVATION_MEMORY


@dataclass(frozen=True)
class MemoryPlan:
    """The division of a quantization into steps that fit the memory.

    Attributes:
        steps: One step for each cut.
        activation_memory: Bytes of values between cuts that are kept in memory.
        rows_at_once: Number of rows of a layer whose ranges are searched together.
        sparing: Whether free memory is returned to the system at once, which costs time.
        integers: Whether convolutions may be computed in integers, with weights of their own.
        present_bytes: Resident memory before the quantization; on a CUDA device, memory of the tensors there.
        peak_bytes: Expected peak of the same memory during the quantization.
    """

    steps: list[Step]
    activation_memory: int
    rows_at_once: int
    sparing: bool
    integers: bool
    present_bytes: int
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Convert the plan to JSON types."""
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


class Inputs(Protocol):
    """Inputs of a network, as `AugmentedImages` has them."""

    def __len__(self) -> int:
        """Return the number of inputs."""

    def batch(self, start: int, stop: int) -> Tensor:
        """Return inputs start..stop, float32 [b, C, H, W] on the device of the network."""


class BlankInputs:
    """Inputs of zeros, for a plan before any image is decoded.

    Args:
        spec: Preparation of the images.
        count: Number of images.
        device: Device of the network.
    """

    def __init__(self, spec: InputSpec, count: int, device: torch.device) -> None:
        self._spec, self._count, self._device = spec, count, device

    def __len__(self) -> int:
        return self._count

    def batch(self, start: int, stop: int) -> Tensor:
        """Return zeros [stop - start, C, H, W] in channels-last layout."""
        shape = (stop - start, self._spec.channels, self._spec.size, self._spec.size)
        return torch.zeros(shape, device=self._device).to(memory_format=torch.channels_last)


def check_memory(model: nn.Module, inputs: InputSpec, images: int, spec: QuantSpec, resources: Resources) -> None:
    """Check that the work can be planned within the memory, before any image is decoded.

    Args:
        model: Full-precision network. Its weights are brought into the layout of the work.
        inputs: Preparation of its images.
        images: Number of images.
        spec: Quantization settings.
        resources: Memory limits.

    Raises:
        ArchitectureError: The network has no layers to quantize.
        MemoryLimitError: Not even the slowest plan fits; the message has the lowest limit that suffices.
    """
    full = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    plan_work(Program(full), full, BlankInputs(inputs, images, device_of(full)), spec, resources)


def plan_work(program: Program, model: nn.Module, images: Inputs, spec: QuantSpec, resources: Resources) -> MemoryPlan:
    """Choose the fastest plan that fits the memory.

    Args:
        program: Program of `model`.
        model: Full-precision network, which is run on one image.
        images: Calibration images.
        spec: Quantization settings.
        resources: Memory limits.

    Raises:
        MemoryLimitError: Not even the slowest plan fits; the message has the lowest limit that suffices.
    """
    layers = quantizable_layers(model)
    single = schedule(program, model, layers, images.batch(0, 1), len(images))
    give_back_free_memory()
    device = device_of(model)
    resources = dataclasses.replace(resources, memory_limit=limit_bytes(device, resources.memory_limit))
    present = present_bytes(device)  # after a first pass, which loads torch's code into memory
    least = 0
    for halvings, sparing in _settings(resources):
        rows_at_once = max(spec.rows_at_once >> halvings, 1)
        tried = dataclasses.replace(spec, rows_at_once=rows_at_once)
        steps = with_batches(single, resources.batch_bytes >> halvings)
        overhead, margin = (SPARING_OVERHEAD, SPARING_MARGIN) if sparing else (OVERHEAD, MARGIN)
        integers = not sparing and (spec.propagation == 0 or spec.quantizes_activations)
        counted = _weights_bytes(layers, integers) + _work_bytes(program, layers, tried, steps)
        work = KERNEL_BYTES + int(overhead * counted)
        waiting = min(resources.activation_memory, _waiting_bytes(spec, steps))
        if resources.memory_limit is not None:
            room = int(resources.memory_limit / (1 + margin))
            work = max(work, KERNEL_BYTES + _weights_bytes(layers, integers) + _rounding_bytes(spec, layers))
            waiting = min(waiting, room - present - work)
        if waiting >= 0:
            return MemoryPlan(steps, waiting, rows_at_once, sparing, integers, present, present + work + waiting)
        least = int((present + work) * (1 + margin))
    raise MemoryLimitError(
        f"a memory limit of {(resources.memory_limit or 0) >> 20} MiB is too little for this model; it takes at least"
        f" {(least >> 20) + 1} MiB"
    )


def _settings(resources: Resources) -> Iterator[tuple[int, bool]]:
    """Yield how often to halve the batch and the rows, and whether to be sparing, fastest settings first."""
    yield 0, False
    if resources.memory_limit is not None:
        yield from ((halvings, True) for halvings in range(SHRINK_STEPS))


def _weights_bytes(layers: dict[str, QuantizableLayer], integers: bool) -> int:
    """Return the bytes of all decoded float32 weights and their codes, and of weights for integer convolutions."""
    rounded = sum(layer.weight.numel() for layer in layers.values() if integers and integers_are_faster(layer))
    return rounded + sum(5 * layer.weight.numel() for layer in layers.values())


def _rounding_bytes(spec: QuantSpec, layers: dict[str, QuantizableLayer]) -> int:
    """Return the bytes that choosing ranges of activations, and models of engines, takes after all layers."""
    if not spec.quantizes_activations:
        return 0
    return 4 * COPIES_FOR_RANGES * sum(layer.weight.numel() for layer in layers.values())


def _waiting_bytes(spec: QuantSpec, steps: list[Step]) -> int:
    """Return the most bytes of values at any cut, as float16."""
    streams = 2 if spec.propagation > 0 else 1
    return max(streams * step.images * step.live_bytes // 2 for step in steps)


def _work_bytes(program: Program, layers: dict[str, QuantizableLayer], spec: QuantSpec, steps: list[Step]) -> int:
    """Return the larger of the bytes that a batch and that solving a layer takes, at the worst cut."""
    entering, most = 0, 0
    for cut, step in zip(program.cuts, steps, strict=True):
        batch = step.batch * step.peak_bytes
        if spec.propagation > 0:
            batch += step.batch * (step.live_bytes + step.output_bytes)
        # New images run through everything before this cut, in batches as large as those of the first cut.
        batch = max(batch, entering + step.batch * step.live_bytes)
        entering = max(entering, steps[0].batch * step.peak_bytes)
        sums = [moments_bytes(layers[name]) for name in cut.layers]
        kept = sum(each.gram + each.cross for each in sums)
        summing = batch + kept + max(each.scratch for each in sums)
        # The Hessian overwrites the Gram matrix that it is computed from.
        solving = kept + max(
            solve_bytes(layers[name].weight, _groups(layers[name]), spec) - each.gram
            for name, each in zip(cut.layers, sums, strict=True)
        )
        most = max(most, summing, solving)
    return most


def _groups(layer: QuantizableLayer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1
