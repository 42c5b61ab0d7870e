"""What reaches a unit of a network: its inputs on the calibration images, and how much its outputs matter.

Nothing is kept of all images but samples in an `ActivationStore`, as the engine keeps them: as float16, and on the disk
where they do not fit a small part of the memory. Methods that need sums alone read them in batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from edged.comparators.units import Unit
from edged.engine.activations import ActivationStore
from edged.models.graph import Program, Values

Images = Callable[[], Iterable[Tensor]]

PART_BYTES = 16 << 20  # outputs of a unit that are computed at a time while it is optimized
GRADIENT_PIXELS = 400_000  # of images through a network with gradients at a time


class Samples:
    """A value of every calibration image.

    Args:
        store: Store that holds the values.
        stream: Name of the stream in it.
        value: Name of the value in it.
        count: Number of images.
        batch_size: Images per batch.
    """

    def __init__(self, store: ActivationStore, stream: str, value: str, count: int, batch_size: int) -> None:
        self._store, self._stream, self._value = store, stream, value
        self._count, self._batch_size = count, batch_size

    def __len__(self) -> int:
        return self._count

    def rows(self, images: Iterable[int]) -> Tensor:
        """Return the values of some images, float32 [images, ...]."""
        return torch.cat([self._store.get(self._stream, image, self._value)[self._value] for image in images])

    def batches(self) -> Iterator[Tensor]:
        """Yield the values of all images in order, float32 [b, ...]."""
        for start in range(0, self._count, self._batch_size):
            yield self.rows(range(start, min(start + self._batch_size, self._count)))

    def parts(self, images: Tensor) -> Iterator[list[int]]:
        """Divide images into parts whose values take PART_BYTES at most, or a single image.

        Args:
            images: Indices, int64 [n].
        """
        size = max(1, PART_BYTES // max(1, self.rows([0]).nbytes))
        yield from (part.tolist() for part in torch.split(images, size))


class Stream:
    """The calibration images on their way through a network: the values that are live at one cut of it.

    Args:
        name: Name of the stream in the store.
        program: Program of the network.
        model: The network, whose units before a cut have their final weights when that cut is asked for.
        images: Returns the calibration images in batches.
        store: Store that holds the values.
    """

    def __init__(self, name: str, program: Program, model: nn.Module, images: Images, store: ActivationStore) -> None:
        self._name, self._program, self._modules = name, program, dict(model.named_modules())
        self._images, self._store = images, store
        self._index, self._count, self._batch_size = 0, 0, 1

    def inputs_of(self, layer: str) -> Samples:
        """Return the inputs of a layer; no layer before it can be asked for afterwards, and no others are kept."""
        cut = next(cut for cut in self._program.cuts if layer in cut.layers)
        if not self._count or cut.index > self._index:
            first = 0
            for before in self._batches():
                with torch.no_grad():
                    values = self._program.run(before, self._index, cut, self._modules)
                put_rows(self._store, self._name, first, values)
                first += len(values[cut.source])
            self._index, self._count = cut.index, first
        return Samples(self._store, self._name, cut.source, self._count, self._batch_size)

    def _batches(self) -> Iterator[Values]:
        """Yield the values that are live now; before the first cut these are the images."""
        if not self._count:
            for batch in self._images():
                self._batch_size = max(self._batch_size, len(batch))
                yield {self._program.input: batch}
        for start in range(0, self._count, self._batch_size):
            stop = min(start + self._batch_size, self._count)
            rows = [self._store.get(self._name, image) for image in range(start, stop)]
            yield {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def put_rows(store: ActivationStore, stream: str, first: int, values: Values) -> None:
    """Store the values [b, ...] of a batch image by image, in place of those that the stream holds."""
    for row in range(len(next(iter(values.values())))):
        store.put(stream, first + row, {name: value[row : row + 1] for name, value in values.items()})


@dataclass(frozen=True)
class UnitInputs:
    """The inputs and targets of a unit, computed when a method asks for them.

    Attributes:
        unit: The unit in full precision.
        full: The network in full precision.
        quantized: The network in which all units before this one are quantized.
        images: Returns the calibration images in batches [b, channels, size, size], the same ones at every call.
        full_stream: The images on their way through `full`.
        quantized_stream: The images on their way through `quantized`.
        store: Store of what a method keeps of all images.
    """

    unit: Unit
    full: nn.Module
    quantized: nn.Module
    images: Images
    full_stream: Stream
    quantized_stream: Stream
    store: ActivationStore
    _kept: dict[str, int] = field(default_factory=dict)

    @functools.cached_property
    def of_full(self) -> Samples:
        """Inputs in full precision."""
        return self.full_stream.inputs_of(next(iter(self.unit.layers)))

    @functools.cached_property
    def of_quantized(self) -> Samples:
        """Inputs through the quantized units before this one."""
        return self.quantized_stream.inputs_of(next(iter(self.unit.layers)))

    def targets(self) -> Iterator[Tensor]:
        """Yield the outputs [b, ...] of the unit's module in full precision, in batches of all images in order."""
        for x in self.of_full.batches():
            with torch.no_grad():
                y: Tensor = self.unit.module(x)
            yield y

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of inputs through the quantized units [b, ...], and the targets [b, ...] of the same images."""
        return zip(self.of_quantized.batches(), self.targets(), strict=True)

    def keep(self, name: str, batches: Iterable[Tensor]) -> Samples:
        """Keep a value of every image until `release`.

        Args:
            name: Name of the value.
            batches: The value [b, ...] in batches of all images in order.
        """
        first, batch_size = 0, 1
        for batch in batches:
            put_rows(self.store, name, first, {name: batch})
            first, batch_size = first + len(batch), max(batch_size, len(batch))
        self._kept[name] = first
        return Samples(self.store, name, name, first, batch_size)

    def release(self) -> None:
        """Delete what was kept."""
        for name, count in self._kept.items():
            for image in range(count):
                self.store.discard(name, image)
        self._kept.clear()


def squared_gradients(full: nn.Module, quantized: nn.Module, name: str, images: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the squared gradient of the task loss by each output of the module `name`, the diagonal of its Fisher.

    The loss is the Kullback-Leibler divergence of the quantized network's classes from those of full precision; of a
    detector's raw outputs, it is their squared error.

    Args:
        full: Network in full precision, eval mode.
        quantized: The same network with the module, and all before it, quantized: with equal outputs the gradient is 0.
        name: Name of the module.
        images: Batches of images.

    Returns:
        Squared gradients [b, ...] in the shape of the module's outputs, in batches of all images in order.
    """
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # what follows may work in place

    hook = quantized.get_submodule(name).register_forward_hook(cut)
    try:
        for batch in (part for whole in images for part in _parts(whole)):
            with torch.no_grad():
                reference = full(batch)
            with torch.enable_grad():
                loss = _divergence(quantized(batch), reference)
                (gradient,) = torch.autograd.grad(loss, leaves.pop())
            yield gradient.square()
    finally:
        hook.remove()


def _parts(batch: Tensor) -> tuple[Tensor, ...]:
    return torch.split(batch, max(1, GRADIENT_PIXELS // batch.shape[2:].numel()))


def _divergence(output: Tensor, reference: Tensor) -> Tensor:
    if output.dim() > 2:
        return functional.mse_loss(output, reference, reduction="sum")
    return functional.kl_div(output.log_softmax(1), reference.softmax(1), reduction="sum")
