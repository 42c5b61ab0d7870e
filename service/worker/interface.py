"""The interface of a model as its clients see it, from a manifest or from a checkpoint. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CHECKPOINT, FOLDERS = "checkpoint", "folders"  # origins of class names


@dataclass(frozen=True)
class Interface:
    """The part of a model that its clients rely on.

    Attributes:
        architecture: Name of the architecture, for messages only.
        task: "classification" or "detection".
        classes: Number of classes.
        names: Names of the classes in their order; None if they are unknown.
        channels: Color channels of the input.
        size: Side of the square input in pixels.
        predictions: Number of predictions of a detector per image; 0 for a classifier.
        named_by: What has the names: the "checkpoint", or the "folders" of the calibration images. Names are compared
            with those of the same origin only: folders may be named by codes.
    """

    architecture: str
    task: str
    classes: int
    names: tuple[str, ...] | None
    channels: int
    size: int
    predictions: int = 0
    named_by: str = CHECKPOINT

    @classmethod
    def of(
        cls, architecture: Mapping[str, Any], size: int, names: tuple[str, ...] | None, named_by: str = CHECKPOINT
    ) -> Interface:
        """Return the interface of a network.

        Args:
            architecture: What `Architecture.to_dict` returns.
            size: Side of the square input in pixels.
            names: Names of the classes; those of a detector are in `architecture`.
            named_by: Origin of `names`.

        Raises:
            KeyError, TypeError, ValueError: `architecture` was written by another version of edged.
        """
        name, classes, channels = architecture["name"], architecture["num_classes"], architecture["in_channels"]
        plan = architecture.get("plan")
        if plan is None:
            return cls(name, "classification", classes, names, channels, size, named_by=named_by)
        levels = zip(plan["strides"], plan["anchors"], strict=True)
        predictions = sum((size // stride) ** 2 * len(anchors) for stride, anchors in levels)
        return cls(name, "detection", classes, tuple(plan["names"]), channels, size, predictions)

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Interface:
        """Return the interface of an artifact; raises what `of` raises.

        Args:
            manifest: Contents of its manifest.json.
        """
        names, size = manifest["classes"], manifest["input"]["size"]
        named_by = FOLDERS if manifest["calibration"].get("names_classes", True) else CHECKPOINT
        return cls.of(manifest["architecture"], size, None if names is None else tuple(names), named_by)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interface:
        """Read what `to_dict` returns, also from JSON."""
        names = data["names"]
        return cls(**{**data, "names": None if names is None else tuple(names)})

    def difference(self, other: Interface, owner: str) -> str | None:
        """Return the first difference of tensors that clients would notice; None if there is none.

        Args:
            other: Interface that clients know.
            owner: Whose it is, for the message, such as "generation 3".
        """
        if self.task != other.task:
            return f"is a {_KINDS[self.task]} ({self.architecture}), {owner} is a {_KINDS[other.task]}"
        if self.classes != other.classes:
            return f"has {self.classes} classes, {owner} has {other.classes}"
        if (self.channels, self.size) != (other.channels, other.size):
            return f"reads images of {self._input()}, {owner} reads {other._input()}"
        if self.predictions != other.predictions:
            return f"has {self.predictions} predictions an image, {owner} has {other.predictions}"
        return None

    def renaming(self, other: Interface, owner: str) -> str | None:
        """Return the first class of another name, for interfaces without a `difference`; None if there is none."""
        if self.names is None or other.names is None or self.named_by != other.named_by:
            return None
        places = [i for i, pair in enumerate(zip(self.names, other.names, strict=True)) if pair[0] != pair[1]]
        if not places:
            return None
        first, more = places[0], f" and {len(places) - 1} more differ" if len(places) > 1 else ""
        return f"calls class {first} {self.names[first]!a:.80}, {owner} calls it {other.names[first]!a:.80}{more}"

    def _input(self) -> str:
        return f"{self.channels}x{self.size}x{self.size}"


_KINDS = {"classification": "classifier", "detection": "detector"}


@dataclass(frozen=True)
class Incumbent:
    """The generation in service, as far as it is known before the file of another one is read.

    Attributes:
        generation: Number of the generation.
        interface: Interface of the generation.
    """

    generation: int
    interface: Interface

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"generation": self.generation, "interface": self.interface.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Incumbent:
        """Read what `to_dict` returns."""
        return cls(data["generation"], Interface.from_dict(data["interface"]))
