"""Find the layers of a head among the tensors of a state dict; what stands between them is the user's to say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_WITH_TENSORS = ("linear", "batchnorm")
MAX_SUGGESTED = 8  # layers of a head that a message describes
_NORM = {"weight", "bias", "running_mean", "running_var"}


@dataclass(frozen=True)
class StoredLayer:
    """A linear layer or a BatchNorm of a head, as the file holds it.

    Attributes:
        name: Name of the layer in the file.
        kind: "linear" or "batchnorm".
        inputs: Values that it reads.
        outputs: Values that it gives.
        members: Last parts of the names of its tensors.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    members: tuple[str, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its tensors in the file."""
        return tuple(f"{self.name}.{member}" if self.name else member for member in self.members)

    def __str__(self) -> str:
        width = f"{self.inputs} -> {self.outputs}" if self.kind == "linear" else str(self.outputs)
        return f"{self.kind} {width} at {self.name[:60]!a}"


def stored_layers(shapes: Mapping[str, tuple[int, ...]], names: Iterable[str]) -> list[StoredLayer]:
    """Return the linear layers and BatchNorms among tensors, in the order of the file.

    Args:
        shapes: Shape of each tensor, by name.
        names: Names of the tensors to look at.
    """
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in names:
        layer, _, member = name.rpartition(".")
        groups.setdefault(layer, {})[member] = shapes[name]
    found = [_layer(name, members) for name, members in groups.items()]
    return [layer for layer in found if layer is not None]


def _layer(name: str, members: Mapping[str, tuple[int, ...]]) -> StoredLayer | None:
    weight = members.get("weight", ())
    if len(weight) == 2 and members.keys() <= {"weight", "bias"}:
        return StoredLayer(name, "linear", weight[1], weight[0], tuple(members))
    if len(weight) == 1 and members.keys() - {"num_batches_tracked"} == _NORM:
        return StoredLayer(name, "batchnorm", weight[0], weight[0], tuple(members))
    return None


def matching_layers(
    layers: Sequence[StoredLayer], words: Sequence[str], features: int
) -> tuple[tuple[int, StoredLayer], ...]:
    """Return the layers that a description of a head names, each with its number among the described modules.

    Args:
        layers: Layers of the file, in any order.
        words: Description of the head, see `edged.spec.Choice.head_layers`.
        features: Channels of the maps that the body outputs.

    Returns:
        Empty where no layers of the file are of these kinds, each as wide as the one before it.
    """
    pooled = words[:1] == ("concat_pool",)
    modules = words[1:] if pooled else words
    numbers = [number for number, word in enumerate(modules) if word in _WITH_TENSORS]
    for ordered in (layers, sorted(layers, key=lambda layer: _natural(layer.name))):
        for start in range(len(layers) - len(numbers) + 1):
            chosen = ordered[start : start + len(numbers)]
            kinds = [layer.kind for layer in chosen] == [modules[number] for number in numbers]
            if kinds and _is_chain(chosen, features * (2 if pooled else 1)):
                return tuple(zip(numbers, chosen, strict=True))
    return ()


def likely_head(layers: Sequence[StoredLayer], features: int | None) -> list[str]:
    """Return the description of a head that is most likely, for a message; empty if the layers are no chain."""
    first = [layer.inputs for layer in layers[:1]]
    if not first or len(layers) > MAX_SUGGESTED or not _is_chain(layers, first[0]):
        return []
    words = ["concat_pool"] if features is not None and first == [2 * features] else []
    for index, layer in enumerate(layers):
        words.append(layer.kind)
        if layer.kind == "linear" and index < len(layers) - 1:
            words.append("relu")
    return words


def _is_chain(layers: Sequence[StoredLayer], width: int) -> bool:
    for layer in layers:
        if layer.inputs != width:
            return False
        width = layer.outputs
    return True


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by their value."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isascii() and part.isdigit() else (0, part) for part in parts]
