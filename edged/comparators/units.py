"""The parts of a network that comparators quantize one after another: single layers, or residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional

from edged.calibration.geometry import QuantizableLayer
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.models.resnet import BasicBlock, Bottleneck, CifarBlock
from edged.models.yolov5.blocks import Bottleneck as DetectorBottleneck

RESIDUAL_BLOCKS = (CifarBlock, BasicBlock, Bottleneck, DetectorBottleneck)
_ACTIVATIONS: Mapping[Any, Callable[[Tensor], Tensor]] = {
    functional.relu: functional.relu,
    torch.relu: functional.relu,
    "relu": functional.relu,
    nn.ReLU: functional.relu,
    functional.silu: functional.silu,
    nn.SiLU: functional.silu,
}


@dataclass(frozen=True)
class Unit:
    """A layer or a block, with what follows it up to the output that a method reconstructs.

    Attributes:
        name: Module name.
        module: The module in full precision.
        layers: Its layers by their names in the network, in order of execution. The first reads the unit's input.
        norm: BatchNorm that alone reads a single layer's output; None for a block, or if there is none.
        activation: Activation that alone reads what the norm returns; None for a block, or if there is none.
        norm_name: Module name of the norm; empty if there is none.
    """

    name: str
    module: nn.Module
    layers: Mapping[str, QuantizableLayer]
    norm: nn.BatchNorm2d | None = None
    activation: Callable[[Tensor], Tensor] | None = None
    norm_name: str = ""

    @property
    def is_block(self) -> bool:
        """Whether it is a block rather than a single layer."""
        return self.name not in self.layers

    @property
    def layer(self) -> QuantizableLayer:
        """Its only layer.

        Raises:
            ValueError: It is a block.
        """
        (only,) = self.layers.values()
        return only

    def run(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Compute the module's output [b, ...] for inputs `x` [b, ...] with other weights, given by layer name."""
        parameters = {f"{layer[len(self.name) :]}.weight".lstrip("."): weight for layer, weight in weights.items()}
        output: Tensor = functional_call(self.module, parameters, (x,))
        return output

    def normalized(self, y: Tensor) -> Tensor:
        """Return a layer's output `y` after its BatchNorm, which a deployed network computes together with it."""
        return y if self.norm is None else self.norm(y)

    def activated(self, y: Tensor) -> Tensor:
        """Return a layer's output `y` after its BatchNorm and activation."""
        y = self.normalized(y)
        return y if self.activation is None else self.activation(y)


def find_units(model: nn.Module, blockwise: bool) -> list[Unit]:
    """Return all units of a network in order of execution; each layer belongs to exactly one.

    Args:
        model: Network in eval mode that torch.fx can trace.
        blockwise: Whether residual blocks are units; layers outside of them are units of their own in any case.

    Raises:
        ArchitectureError: The network has no layer to quantize.
    """
    modules, layers = dict(model.named_modules()), quantizable_layers(model)
    nodes = {str(node.target): node for node in fx.symbolic_trace(model).graph.nodes if node.op == "call_module"}
    found: dict[str, Unit] = {}
    # The engine's order, in which layers that read the same value follow one another.
    for layer in (name for cut in Program(model).cuts for name in cut.layers):
        block = _block_around(layer, modules) if blockwise else None
        if block is None:
            found[layer] = _single(nodes[layer], layer, modules)
        else:
            members = {**(found[block].layers if block in found else {}), layer: layers[layer]}
            found[block] = Unit(block, modules[block], members)
    return list(found.values())


def _block_around(layer: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the innermost residual block that contains a layer, or None."""
    name = layer
    while name:
        name = name.rpartition(".")[0]
        if isinstance(modules[name], RESIDUAL_BLOCKS):
            return name
    return None


def _single(node: fx.Node, layer: str, modules: Mapping[str, Any]) -> Unit:
    reader = _only_reader(node)
    norm = modules.get(str(reader.target)) if reader is not None and reader.op == "call_module" else None
    if reader is None or not isinstance(norm, nn.BatchNorm2d):
        return Unit(layer, modules[layer], {layer: modules[layer]}, None, _activation(reader, modules))
    activation = _activation(_only_reader(reader), modules)
    return Unit(layer, modules[layer], {layer: modules[layer]}, norm, activation, str(reader.target))


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None, modules: Mapping[str, nn.Module]) -> Callable[[Tensor], Tensor] | None:
    if node is None:
        return None
    kind = type(modules[str(node.target)]) if node.op == "call_module" else node.target
    return _ACTIVATIONS.get(kind)
