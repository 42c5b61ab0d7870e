"""What reaches a unit of a network: its inputs on the calibration images, and how much its outputs matter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edged.comparators.units import Unit
from edged.models.graph import Program, Values

Images = Callable[[], Iterable[Tensor]]


class Stream:
    """The calibration images on their way through a network: the values that are live at one cut of it.

    Args:
        program: Program of the network.
        model: The network, whose units before a cut have their final weights when that cut is asked for.
        images: Returns the calibration images in batches.
    """

    def __init__(self, program: Program, model: nn.Module, images: Images) -> None:
        self._program, self._modules = program, dict(model.named_modules())
        self._batches: list[Values] | None = None
        self._images, self._index = images, 0

    def inputs_of(self, layer: str) -> Tensor:
        """Return the inputs [n, ...] of a layer; no layer before it can be asked for afterwards."""
        cut = next(cut for cut in self._program.cuts if layer in cut.layers)
        before = self._batches or ({self._program.input: batch} for batch in self._images())
        if self._batches is None or cut.index > self._index:
            with torch.no_grad():
                self._batches = [self._program.run(part, self._index, cut, self._modules) for part in before]
            self._index = cut.index
        return torch.cat([part[cut.source] for part in self._batches])


@dataclass(frozen=True)
class UnitInputs:
    """The inputs and targets of a unit, computed when a method asks for them, and kept until the unit is quantized.

    Attributes:
        unit: The unit in full precision.
        full: The network in full precision.
        quantized: The network in which all units before this one are quantized.
        images: Returns the calibration images in batches [b, channels, size, size], the same ones at every call.
        full_stream: The images on their way through `full`.
        quantized_stream: The images on their way through `quantized`.
    """

    unit: Unit
    full: nn.Module
    quantized: nn.Module
    images: Images
    full_stream: Stream
    quantized_stream: Stream

    @functools.cached_property
    def of_full(self) -> Tensor:
        """Inputs [n, ...] in full precision."""
        return self.full_stream.inputs_of(next(iter(self.unit.layers)))

    @functools.cached_property
    def of_quantized(self) -> Tensor:
        """Inputs [n, ...] through the quantized units before this one."""
        return self.quantized_stream.inputs_of(next(iter(self.unit.layers)))

    @functools.cached_property
    def targets(self) -> Tensor:
        """Outputs [n, ...] of the unit's module in full precision."""
        with torch.no_grad():
            return torch.cat([self.unit.module(part) for part in torch.split(self.of_full, 64)])


def squared_gradients(full: nn.Module, quantized: nn.Module, name: str, images: Iterable[Tensor]) -> Tensor:
    """Return the squared gradient of the task loss by each output of the module `name`, the diagonal of its Fisher.

    The loss is the Kullback-Leibler divergence of the quantized network's classes from those of full precision; of a
    detector's raw outputs, it is their squared error.

    Args:
        full: Network in full precision, eval mode.
        quantized: The same network with the module, and all before it, quantized: with equal outputs the gradient is 0.
        name: Name of the module.
        images: Batches of images.

    Returns:
        Squared gradients [n, ...] in the shape of the module's outputs.
    """
    found: list[Tensor] = []
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # what follows may work in place

    hook = quantized.get_submodule(name).register_forward_hook(cut)
    try:
        for batch in images:
            with torch.no_grad():
                reference = full(batch)
            with torch.enable_grad():
                loss = _divergence(quantized(batch), reference)
                (gradient,) = torch.autograd.grad(loss, leaves.pop())
            found.append(gradient.square())
    finally:
        hook.remove()
    return torch.cat(found)


def _divergence(output: Tensor, reference: Tensor) -> Tensor:
    if output.dim() > 2:
        return functional.mse_loss(output, reference, reduction="sum")
    return functional.kl_div(output.log_softmax(1), reference.softmax(1), reduction="sum")
