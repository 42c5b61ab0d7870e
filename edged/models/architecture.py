"""The architecture of a network, without its weights, as data that a manifest can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.errors import ArchitectureError, UsageError
from edged.models.head_description import checked_head
from edged.models.names import ARCHITECTURES, CIFAR, CLASSIFIERS, DETECTORS, TORCHVISION, detector_side
from edged.models.yolov5.plan import Plan
from edged.models.yolov5.standard import name_of
from edged.spec import IMAGE_MODES, Fit, InputSpec

__all__ = ["ARCHITECTURES", "CIFAR", "CLASSIFIERS", "DETECTORS", "TORCHVISION", "Architecture", "checked"]

MAX_CLASSES = 100_000
# Keys that older manifests lack -> type and default. Only values other than the default are written.
_ADDED: Mapping[str, tuple[type, Any]] = {
    "plan": (dict, None),
    "stem_pooling": (bool, None),
    "stride_in": (str, "3x3"),
    "head": (list, []),
}
_TYPES: Mapping[type, str] = {dict: "an object", list: "a list"}
_GREY_MEAN, _GREY_STD = (0.449,), (0.226,)  # ImageNet's values, averaged over RGB


@dataclass(frozen=True)
class Architecture:
    """The architecture of a network: everything but its weights.

    Attributes:
        name: One of `ARCHITECTURES`.
        num_classes: Number of classes.
        stem: "imagenet" (7x7 stride 2, then max-pooling), "small" (3x3 stride 1, none), "cifar", or "plan" (a
            detector's stem follows from its plan).
        in_channels: Channels of the input image, a key of `edged.spec.IMAGE_MODES`.
        shortcut: "projection" (1x1 convolution) or "pad" (option A of the CIFAR ResNets); "plan" for a detector.
        plan: Rows, anchors and class names of a detector; None for a classifier.
        stem_pooling: Whether max-pooling follows the first convolution of a ResNet of four stages; None for what is
            usual after its stem.
        stride_in: Convolution of a bottleneck block that has the stride: "3x3", or "1x1", the first one.
        head: Layers of a head of several layers, see `edged.models.head_description`; empty for one linear layer with a
            bias.
    """

    name: str
    num_classes: int
    stem: str = "imagenet"
    in_channels: int = 3
    shortcut: str = "projection"
    plan: Plan | None = None
    stem_pooling: bool | None = None
    stride_in: str = "3x3"
    head: tuple[str, ...] = ()

    @classmethod
    def detector(cls, plan: Plan, in_channels: int = 3) -> Architecture:
        """Return the architecture of a detector."""
        return cls(name_of(plan), len(plan.names), "plan", in_channels, "plan", plan)

    @property
    def task(self) -> str:
        """The task of the network: "classification" or "detection"."""
        return "classification" if self.plan is None else "detection"

    @property
    def default_input(self) -> InputSpec:
        """The preparation of images unless the user configures another one; mean and std only for color and gray."""
        if self.plan is not None:
            side = detector_side(max(self.plan.strides(self.in_channels)))
            return InputSpec.letterbox(side, self.in_channels)
        size, resize = (224, 256) if self.stem == "imagenet" else (32, 32)
        if self.in_channels == 1:
            return InputSpec(size, resize, _GREY_MEAN, _GREY_STD)
        return InputSpec(size, resize)

    def check_input(self, spec: InputSpec) -> None:
        """Check that images prepared according to `spec` fit the network.

        Raises:
            UsageError: The number of channels differs, or a detector's input is not letterboxed to a multiple of its
                largest stride.
        """
        if spec.channels != self.in_channels:
            raise UsageError(
                f"mean and std have {spec.channels} values, {self.name} reads {self.in_channels} channels;"
                f" give one value a channel: input: {{mean: [...], std: [...]}} with {self.in_channels} values each"
            )
        if self.plan is None:
            return
        largest = max(self.plan.strides(self.in_channels))
        if spec.size % largest:
            raise UsageError(f"input size has value {spec.size}; {self.name} needs a multiple of {largest}")
        if spec.fit is not Fit.LETTERBOX:
            raise UsageError(f"input fit has value {spec.fit.value!r}; {self.name} needs 'letterbox'")

    @property
    def pools_stem(self) -> bool:
        """Whether max-pooling follows the first convolution."""
        return self.stem == "imagenet" if self.stem_pooling is None else self.stem_pooling

    @property
    def has_bottlenecks(self) -> bool:
        """Whether its blocks are bottlenecks of three convolutions."""
        return TORCHVISION.get(self.name, ("", ()))[0] == "bottleneck"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; keys of `_ADDED` are there only where they differ from their defaults."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data |= {"plan": None if self.plan is None else self.plan.to_dict(), "head": list(self.head)}
        return {key: value for key, value in data.items() if key not in _ADDED or value != _ADDED[key][1]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` returns.

        Raises:
            ArchitectureError: A key is missing, unknown, or has an impossible value.
        """
        kinds: dict[str, type] = {
            field.name: int if field.name in ("num_classes", "in_channels") else str
            for field in dataclasses.fields(cls)
            if field.name not in _ADDED
        }
        if different := sorted(kinds.keys() ^ (data.keys() - _ADDED.keys())):
            raise ArchitectureError(
                f"architecture has a missing or unknown key {different[0]!r}; it needs {', '.join(kinds)}"
            )
        values = {key: usual for key, (_, usual) in _ADDED.items()} | dict(data)
        kinds |= {key: kind for key, (kind, _) in _ADDED.items()}
        for key, kind in kinds.items():
            if values[key] is None and key in _ADDED:
                continue
            if type(values[key]) is not kind and not (key == "plan" and isinstance(values[key], Mapping)):
                needed = _TYPES.get(kind, kind.__name__)
                raise ArchitectureError(f"architecture key {key!r} has value {values[key]!r:.80}; it must be {needed}")
        values |= {
            "plan": None if values["plan"] is None else Plan.from_dict(values["plan"]),
            "head": tuple(values["head"] or ()),
        }
        return checked(cls(**values))


def checked(architecture: Architecture) -> Architecture:
    """Check that such a network exists, and return `architecture`.

    Raises:
        ArchitectureError: An attribute has an impossible value.
    """
    choices: dict[str, tuple[Any, ...]] = {
        # Older manifests of the networks of v5.0 have the name of all others.
        "name": CLASSIFIERS if architecture.plan is None else (name_of(architecture.plan), "yolov5"),
        "stem": ("imagenet", "small"),
        "shortcut": ("projection",),
        "in_channels": tuple(IMAGE_MODES),
        "stride_in": ("3x3", "1x1") if architecture.has_bottlenecks else ("3x3",),
        "stem_pooling": (None, True, False) if architecture.name in TORCHVISION else (None,),
    }
    if architecture.name in CIFAR:
        choices |= {"stem": ("cifar",), "shortcut": ("pad", "projection")}
    elif architecture.plan is not None:
        choices |= {"stem": ("plan",), "shortcut": ("plan",)}
    for key, allowed in choices.items():
        if (value := getattr(architecture, key)) not in allowed:
            of_images = "" if key != "in_channels" else ": gray, gray with alpha, RGB and RGB with alpha images"
            raise ArchitectureError(
                f"{key} has value {value!r}; {architecture.name} takes {', '.join(map(str, allowed))}{of_images}"
            )
    if architecture.plan is not None and architecture.head:
        raise ArchitectureError(f"head has value {list(architecture.head)}; {architecture.name} takes none")
    checked_head(architecture.head, architecture.num_classes)
    classes = (1, MAX_CLASSES) if architecture.plan is None else (len(architecture.plan.names),) * 2
    if not classes[0] <= architecture.num_classes <= classes[1]:
        raise ArchitectureError(
            f"num_classes has value {architecture.num_classes}; it must be {' to '.join(map(str, sorted({*classes})))}"
        )
    return architecture
