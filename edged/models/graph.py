"""A network as a straight line of steps that can be run up to any layer, kept there, and resumed.

Quantizing layer by layer needs the inputs of layer k as they are after layers 1..k-1. Running the whole network
once a layer would cost as many passes as there are layers; keeping the values that are still needed at a cut and
resuming from them costs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edged.calibration.geometry import QuantizableLayer
from edged.errors import ArchitectureError
from edged.models.cluster_affine import ClusterAffine
from edged.models.layers import quantizable_layers

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Cut:
    """A point in the line of steps, right before layers that all read the same tensor.

    Attributes:
        index: Number of steps before the cut.
        source: Name of the value that the layers read.
        layers: Their module names, in order.
        live: Names of all values that layers at this point or later still need. Values that only the network's
            output needs are not among them: no layer reads them, and the raw outputs of a detector are large.
    """

    index: int
    source: str
    layers: tuple[str, ...]
    live: tuple[str, ...]


class Program:
    """The steps of a network, traced once.

    Args:
        model: Traceable by torch.fx: no control flow that depends on values. Not modified.

    Attributes:
        cuts: A cut before every group of layers that share an input, in order of execution.
        input: Name of the value that the network's input gets.
        followers: For each layer whose only reader is a BatchNorm, that BatchNorm's module name.
        last_layers: Layers that no other layer follows: the head of a classifier, the heads of a detector.

    Raises:
        ArchitectureError: The network has no layer to quantize.
    """

    def __init__(self, model: nn.Module) -> None:
        graph = trace(model)
        self._layers = quantizable_layers(model)
        self._nodes = _layers_together(list(graph.nodes), self._layers)
        self.input: str = next(node.name for node in self._nodes if node.op == "placeholder")
        self._last_reader = {read.name: i for i, node in enumerate(self._nodes) for read in node.all_input_nodes}
        self._before_layers = _before_layers(self._nodes, self._layers)
        self.last_layers = tuple(
            str(node.target)
            for node in self._nodes
            if _is_layer(node, self._layers) and not any(user in self._before_layers for user in node.users)
        )
        self.cuts = self._find_cuts()
        if not self.cuts:
            raise ArchitectureError("the model has no convolution or linear layer to quantize")
        norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        self.followers = {
            str(node.target): str(reader.target)
            for node in self._nodes
            if node.op == "call_module" and node.target in self._layers and len(node.users) == 1
            for reader in node.users
            if reader.target in norms
        }

    def run(
        self,
        values: Values,
        start: int,
        stop: Cut | None,
        modules: Mapping[str, nn.Module],
        watch: Callable[[Values], None] | None = None,
        replace: Callable[[str, Tensor], Tensor] | None = None,
        complete: bool = False,
    ) -> Values:
        """Run the steps from `start` to a cut, except those that no layer needs.

        Args:
            values: Values that are live at `start`, by name. Values of later steps may be given, too: those steps are
                skipped. Emptied on the way, which frees the memory of values that are no longer needed.
            start: Index of the first step.
            stop: Cut to stop at; None runs to the network's output, which needs values that no cut keeps: start at 0,
                or at a cut where the run that stopped there was complete.
            modules: The network's modules by name; layers may be replaced.
            watch: Called with the values that are live after each step, before those without further readers are
                dropped.
            replace: Called with the name and the value of each step that is run; returns the value to go on with.
            complete: Whether steps that only the network's output needs are run, too, and their values kept.

        Returns:
            The values that are live at `stop`, or {"output": ...}.
        """
        end = len(self._nodes) if stop is None else stop.index
        alive = values
        for index in range(start, end):
            node = self._nodes[index]
            if node.op == "output":
                return {"output": alive[node.all_input_nodes[0].name]}
            if stop is not None and not complete and node not in self._before_layers:
                continue
            if node.name not in alive:
                value = _run_step(node, alive, modules)
                alive[node.name] = value if replace is None else replace(node.name, value)
            if watch is not None:
                watch(alive)
            for read in node.all_input_nodes:
                if self._last_reader[read.name] == index:
                    alive.pop(read.name, None)
        return alive if stop is None or complete else {name: alive[name] for name in stop.live}

    def value_of(self, layer: str) -> str:
        """Return the name of the value that a layer computes."""
        return next(node.name for node in self._nodes if node.op == "call_module" and node.target == layer)

    def _find_cuts(self) -> list[Cut]:
        cuts: list[Cut] = []
        index = 0
        while index < len(self._nodes):
            group = _group_at(self._nodes, index, self._layers)
            if group:
                layers = tuple(str(node.target) for node in group)
                cuts.append(Cut(index, group[0].all_input_nodes[0].name, layers, self._live_at(index)))
            index += max(len(group), 1)
        return cuts

    def _live_at(self, index: int) -> tuple[str, ...]:
        later = [node for node in self._nodes[index:] if node in self._before_layers]
        read = {source.name for node in later for source in node.all_input_nodes}
        return tuple(node.name for node in self._nodes[:index] if node.name in read)


def trace(model: nn.Module) -> fx.Graph:
    """Return the steps of a network, in which a `ClusterAffine` is one.

    Args:
        model: Traceable by torch.fx. Not modified.
    """
    return _Tracer().trace(model)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, ClusterAffine) or super().is_leaf_module(module, name)


def _layers_together(nodes: Sequence[fx.Node], layers: Mapping[str, QuantizableLayer]) -> list[fx.Node]:
    """Return the nodes with every layer moved up to the first layer that reads the same tensor: its input is there."""
    ordered: list[fx.Node] = []
    placed: set[fx.Node] = set()
    for node in nodes:
        if node in placed:
            continue
        siblings = [n for n in nodes if _is_layer(n, layers) and n.args == node.args] if _is_layer(node, layers) else []
        for item in siblings or [node]:
            ordered.append(item)
            placed.add(item)
    return ordered


def _before_layers(nodes: Sequence[fx.Node], layers: Mapping[str, QuantizableLayer]) -> set[fx.Node]:
    """Return the layers and every step whose value reaches one of them."""
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        if _is_layer(node, layers) or any(user in found for user in node.users):
            found.add(node)
    return found


def _group_at(nodes: Sequence[fx.Node], index: int, layers: Mapping[str, QuantizableLayer]) -> list[fx.Node]:
    group: list[fx.Node] = []
    for node in nodes[index:]:
        if not _is_layer(node, layers) or (group and node.args != group[0].args):
            break
        group.append(node)
    return group


def _is_layer(node: fx.Node, layers: Mapping[str, QuantizableLayer]) -> bool:
    return node.op == "call_module" and node.target in layers


def _run_step(node: fx.Node, values: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> Any:
    args = fx.node.map_arg(node.args, lambda read: values[read.name])
    kwargs = fx.node.map_arg(node.kwargs, lambda read: values[read.name])
    if node.op == "call_module":
        return modules[str(node.target)](*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]  # fx stores the callable itself
    if node.op == "call_method":
        return getattr(torch.Tensor, str(node.target))(*args, **kwargs)
    raise ArchitectureError(f"step {node.name} of the network ({node.op}) cannot be run on its own")
