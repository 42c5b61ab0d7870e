"""A small residual network and images, on which comparators take seconds."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from edged.comparators.inputs import Samples, Stream, UnitInputs
from edged.comparators.method import Options
from edged.comparators.nearest import nearest
from edged.comparators.units import Unit, find_units
from edged.engine.activations import ActivationStore
from edged.models.graph import Program
from edged.models.layers import shared_copy
from edged.models.resnet import CifarResNet


def network(blocks: int = 1, seed: int = 0) -> nn.Module:
    """Return a CIFAR ResNet of random weights whose BatchNorms have the statistics of `images`."""
    torch.manual_seed(seed)
    model = CifarResNet(blocks)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    with torch.no_grad():
        model.train()(torch.cat(list(images())))
    return model.eval().requires_grad_(False)


def images() -> Iterator[Tensor]:
    """Return 48 smooth images in batches of 16, the same ones at every call."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        coarse = torch.randn(16, 3, 4, 4, generator=generator)
        yield nn.functional.interpolate(coarse, size=8, mode="bilinear")


def unit_inputs(model: nn.Module, name: str, options: Options, *, blockwise: bool = False) -> tuple[Unit, UnitInputs]:
    """Return a unit of a network, and its inputs when all layers before it are rounded to nearest."""
    quantized = shared_copy(model)
    for unit in find_units(model, blockwise):
        if unit.name == name:
            return unit, inputs_at(unit, model, quantized)
        for layer, weight in nearest(unit, options).weights.items():
            quantized.get_submodule(layer).weight = nn.Parameter(weight.decode(), requires_grad=False)
    raise ValueError(name)


def inputs_at(unit: Unit, model: nn.Module, quantized: nn.Module) -> UnitInputs:
    """Return the inputs of a unit of `model` when the layers before it are those of `quantized`."""
    program, store = Program(model), ActivationStore(1 << 20, Path(tempfile.gettempdir()))
    streams = Stream("full", program, model, images, store), Stream("quantized", program, quantized, images, store)
    inputs = UnitInputs(unit, model, quantized, images, *streams, store)
    weakref.finalize(inputs, store.__exit__)
    return inputs


def whole(samples: Samples | Iterator[Tensor]) -> Tensor:
    """Return samples of all images, or batches, as one tensor."""
    return torch.cat(list(samples.batches() if isinstance(samples, Samples) else samples))


def inputs_of(model: nn.Module, name: str) -> Tensor:
    """Return the inputs of a module over all images, as a hook sees them in whole passes."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].clone()))
    for batch in images():
        model(batch)
    hook.remove()
    return torch.cat(seen)


def output_error(unit: Unit, inputs: UnitInputs, weights: dict[str, Tensor]) -> float:
    """Return the mean squared error of a unit's outputs, after BatchNorm and activation, with other weights."""
    with torch.no_grad():
        found = unit.activated(unit.run(whole(inputs.of_quantized), weights))
        return float((found - unit.activated(whole(inputs.targets()))).square().mean())


def decoded(weights: object) -> dict[str, Tensor]:
    """Return decoded weights by layer name."""
    return {name: weight.decode() for name, weight in dict(weights).items()}  # type: ignore[call-overload]
