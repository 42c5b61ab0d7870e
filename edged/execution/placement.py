"""Placement of quantization: the values of a graph that integer engines carry as codes.

    conv -> relu -> [codes]          one integer kernel: the value between the two never exists
    conv -> [codes] -> silu -> [codes]    silu on codes, its sigmoid rounded, too, or in float
    [codes] -> max-pool, resize      the same codes, so the same grid

A value is carried as codes if an operation that computes on integers reads it.

Layers that are kept in float for accuracy read values that were never rounded, where all readers allow it:

    conv -> relu -> conv in float    the value between the two is no codes, so the first one has float outputs
    relu -> conv in float, add       a sum takes codes or not, whatever its other branch is
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edged.errors import ArtifactError
from edged.execution.graph import (
    ACTIVATIONS,
    Add,
    Affine,
    ClusterAffine,
    Conv,
    GlobalMaxPool,
    Graph,
    Linear,
    MaxPool,
    Node,
    Predictions,
    Relu,
    Resize,
    Weighted,
)
from edged.spec import FLOAT

if TYPE_CHECKING:
    from edged.execution.quantization import ActivationQuantization

PASSING = (MaxPool, GlobalMaxPool, Resize)  # operations whose outputs are some of their inputs' values


@dataclass(frozen=True)
class Placement:
    """The values of a graph that are carried as codes.

    Attributes:
        graph: The graph.
        owners: For each value that is carried as codes, the value whose grid it has: itself, or the value that it
            repeats.
        float_layers: Convolutions and linear layers that compute in float.
        float_silu: Whether SiLU computes in float from codes; its sigmoid is not rounded then.
    """

    graph: Graph
    owners: Mapping[str, str]
    float_layers: frozenset[str]
    float_silu: bool = False

    def rounds_gate(self, node: Node) -> bool:
        """Return whether the sigmoid of a SiLU is rounded to codes."""
        return not self.float_silu and node.inputs[0] in self.owners

    @property
    def values(self) -> list[str]:
        """The values with a grid of their own, in order of execution."""
        return [name for name, owner in self.owners.items() if name == owner]


def head_parameters(graph: Graph) -> list[str]:
    """Return the names of the weights of a detector's output layers; none for a classifier.

    Their outputs are the network's own, in float, and small errors of a box's size or class count in full.
    """
    heads = {name for node in graph.nodes if isinstance(node, Predictions) for name in node.inputs}
    return [node.weight.parameter for node in graph.weighted() if node.name in heads]


def place_nothing(graph: Graph) -> Placement:
    """Return the placement of a graph that computes in float."""
    return Placement(graph, {}, frozenset(node.name for node in graph.weighted()))


def place(
    graph: Graph,
    float_layers: Collection[str] = (),
    in_float: Collection[str] = (),
    *,
    float_activations: bool = False,
    float_silu: bool = False,
) -> Placement:
    """Choose the values that are carried as codes.

    Args:
        graph: The graph.
        float_layers: Names of the state dict's weights (such as "fc.weight") whose layers compute in float, from
            inputs that may be codes.
        in_float: Names of layers (such as "layer1.0.conv1") that are kept in float: values that only they need are not
            rounded.
        float_activations: Whether activations other than ReLU (SiLU, ...) compute in float, from the layer's float
            outputs.
        float_silu: Whether SiLU computes in float from codes.

    Raises:
        ArtifactError: The network has no layer of a name in `in_float`.
    """
    if unknown := sorted(set(in_float) - {layer_name(node) for node in graph.weighted()}):
        raise ArtifactError(f"the network has no layer {unknown[0]!r} to keep in float; quantize the checkpoint again")
    computed_in_float = {node.name for node in graph.weighted() if node.weight.parameter in float_layers}
    owners = _owners(graph, computed_in_float, float_activations=float_activations)
    needs = _Needs(graph, owners)
    kept = frozenset(in_float)
    owners = {name: owner for name, owner in owners.items() if not needs.met(owner, kept)}
    computed_in_float |= {node.name for node in graph.weighted() if layer_name(node) in kept}
    return Placement(graph, owners, frozenset(computed_in_float), float_silu)


def place_quantized(graph: Graph, activations: ActivationQuantization) -> Placement:
    """Return the values that are carried as codes by a quantization of the activations.

    Raises:
        ArtifactError: The network has no layer of a name in `activations.in_float`, or a weight whose codes no engine
            can compute on.
    """
    for node in graph.weighted():
        if node.weight.quantized is not None and not node.weight.quantized.is_uniform:
            raise ArtifactError(
                f"weight {node.weight.parameter!r} has power levels, which no engine computes on integers;"
                " quantize the checkpoint again with levels uniform"
            )
    return place(graph, activations.float_layers, activations.in_float, float_silu=activations.silu == FLOAT)


def layer_name(node: Weighted) -> str:
    """Return the name of a layer in the network; "" for one that only the graph has."""
    return node.weight.parameter.removesuffix(".weight")


def layers_to_keep(placement: Placement) -> dict[str, frozenset[str]]:
    """Return for each of `placement.values` the layers to keep in float so that it need not be rounded.

    A value that is rounded whatever the layers do, as the input of a sum that the network returns, is left out.

    Args:
        placement: Values that are carried as codes, with no layer kept in float.
    """
    needs = _Needs(placement.graph, placement.owners)
    found = ((name, needs.of(name)) for name in placement.values)
    return {name: layers for name, layers in found if layers}


def _owners(graph: Graph, in_float: Collection[str], *, float_activations: bool) -> dict[str, str]:
    """Return the values that operations on integers read, as `Placement.owners`."""
    readers, producers = graph.readers(), graph.producers()

    def computes_on_codes(node: Node) -> bool:
        if isinstance(node, ACTIVATIONS) and not isinstance(node, Relu):
            return not float_activations
        return node.name not in in_float and not isinstance(node, Predictions | Affine | ClusterAffine)

    owners: dict[str, str] = {}
    for name in (graph.input, *producers):
        node, reading = producers.get(name), readers[name]
        absorbed = isinstance(node, Conv | Linear | Add) and [type(reader) for reader in reading] == [Relu]
        if name == graph.output or absorbed or not any(computes_on_codes(reader) for reader in reading):
            continue
        if isinstance(node, PASSING) and node.inputs[0] in owners:
            owners[name] = owners[node.inputs[0]]
        else:
            owners[name] = name
    return owners


class _Needs:
    """The layers that have to compute in float so that a value need not be rounded.

    Args:
        graph: The graph.
        owners: `Placement.owners` with no layer kept in float.
    """

    def __init__(self, graph: Graph, owners: Mapping[str, str]) -> None:
        self._graph, self._owners = graph, owners
        self._readers = graph.readers()
        self._members: dict[str, list[str]] = {}
        for name, owner in owners.items():
            self._members.setdefault(owner, []).append(name)
        self._found: dict[str, frozenset[str] | None] = {}

    def met(self, name: str, kept: frozenset[str]) -> bool:
        """Return whether a value need not be rounded where these layers are kept in float."""
        layers = self.of(name)
        return layers is not None and layers <= kept

    def of(self, name: str) -> frozenset[str] | None:
        """Return the names of the layers; None if it is rounded in any case."""
        owner = self._owners.get(name, name)
        if owner not in self._found:
            self._found[owner] = self._of_readers(self._members.get(owner, [owner]))
        return self._found[owner]

    def _of_readers(self, members: list[str]) -> frozenset[str] | None:
        reading = [node for name in members for node in self._readers[name] if node.name not in members]
        layers = {layer_name(node) for node in reading if isinstance(node, Weighted)} - {""}
        needed = set(layers)
        for value in self._beyond(reading, indifferent=bool(layers)):
            further = self.of(value)
            if not further:
                return None
            needed |= further
        return frozenset(needed) or None

    def _beyond(self, reading: list[Node], *, indifferent: bool) -> Iterator[str]:
        """Yield the values that operations without weights compute of a value, and whose rounding needs its rounding.

        Args:
            reading: Readers of the value.
            indifferent: Whether to leave out operations that compute on codes or not.
        """
        for node in reading:
            copies = isinstance(node, Weighted) and not layer_name(node)  # a shortcut that only moves channels
            if (isinstance(node, Add) or copies) and indifferent:
                continue
            if copies or not isinstance(node, Weighted):
                yield node.name
