"""Which network a state dict belongs to, and that network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edged.errors import ArchitectureError
from edged.models.resnet import CifarResNet
from edged.models.torchvision_shim import import_torchvision
from edged.spec import InputSpec

# Name -> (kind of block, blocks per stage). A bottleneck block has a third convolution.
_TORCHVISION: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
_CIFAR: Mapping[str, int] = {f"cifar_resnet{6 * blocks + 2}": blocks for blocks in (3, 5, 7, 9, 18)}
_CIFAR_NAMES: Mapping[tuple[int, ...], str] = {(blocks,) * 3: name for name, blocks in _CIFAR.items()}

ARCHITECTURES = (*_TORCHVISION, *_CIFAR)
MAX_CLASSES = 100_000
_GREY_MEAN, _GREY_STD = (0.449,), (0.226,)  # the mean over RGB of ImageNet's


@dataclass(frozen=True)
class Architecture:
    """A network, up to its weights.

    Attributes:
        name: One of `ARCHITECTURES`.
        num_classes: Outputs.
        stem: "imagenet" (7x7 stride 2, then max-pooling), "small" (3x3 stride 1, none) or "cifar".
        in_channels: 3 for RGB, 1 for greyscale.
        shortcut: "projection" (1x1 convolution) or "pad" (option A of the CIFAR ResNets).
    """

    name: str
    num_classes: int
    stem: str = "imagenet"
    in_channels: int = 3
    shortcut: str = "projection"

    @property
    def task(self) -> str:
        """What the outputs are."""
        return "classification"

    @property
    def default_input(self) -> InputSpec:
        """How images are prepared unless the user says otherwise."""
        size, resize = (224, 256) if self.stem == "imagenet" else (32, 32)
        if self.in_channels == 1:
            return InputSpec(size, resize, _GREY_MEAN, _GREY_STD)
        return InputSpec(size, resize)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Inverse of `to_dict`.

        Raises:
            ArchitectureError: A key is missing, unknown, or has an impossible value.
        """
        kinds = {
            field.name: int if field.name in ("num_classes", "in_channels") else str
            for field in dataclasses.fields(cls)
        }
        if different := sorted(kinds.keys() ^ data.keys()):
            raise ArchitectureError(
                f"architecture has a missing or unknown key {different[0]!r}; it needs {', '.join(kinds)}"
            )
        for key, kind in kinds.items():
            if type(data[key]) is not kind:
                raise ArchitectureError(f"architecture key {key!r} has value {data[key]!r}; it must be {kind.__name__}")
        return _checked(cls(**data))


def recognize(state: Mapping[str, Tensor], pinned: str | None = None) -> Architecture:
    """The network that `state` belongs to, from the names and shapes of its tensors.

    Args:
        state: Tensors by name. Not modified.
        pinned: The name that the user expects, or None.

    Raises:
        ArchitectureError: It fits no supported network, or not the pinned one; names the first tensor that differs.
    """
    if pinned is not None and pinned not in ARCHITECTURES:
        raise ArchitectureError(f"unknown architecture {pinned!r}; choose one of {', '.join(ARCHITECTURES)}")
    name = pinned or _name_of(state)
    cifar = name in _CIFAR
    stem = _tensor(state, "conv1.weight", 4, name)
    head = _tensor(state, "linear.weight" if cifar else "fc.weight", 2, name)
    projected = not cifar or "layer2.0.shortcut.0.weight" in state
    architecture = Architecture(
        name=name,
        num_classes=head.shape[0],
        stem="cifar" if cifar else "small" if stem.shape[2] == 3 else "imagenet",
        in_channels=stem.shape[1],
        shortcut="projection" if projected else "pad",
    )
    _compare(state, _skeleton(_checked(architecture)), name)
    return architecture


def build(architecture: Architecture) -> nn.Module:
    """The network in eval mode with uninitialized tensors."""
    return _skeleton(architecture).to_empty(device="cpu")


def load_model(state: Mapping[str, Tensor], architecture: Architecture) -> nn.Module:
    """The network with the weights of `state`, in eval mode, without gradients.

    Args:
        state: float32 tensors by name. The model uses them as they are: no copy is made.
        architecture: What `recognize` said, or a manifest.

    Raises:
        ArchitectureError: A tensor is missing, unexpected, misshapen or of the wrong type.
    """
    model = _skeleton(_checked(architecture))
    expected = _compare(state, model, architecture.name)
    # Checkpoints from before torch 0.4.1 lack the counters; inference does not use them.
    complete = {
        name: state[name] if name in state else torch.zeros_like(expected[name], device="cpu") for name in expected
    }
    model.load_state_dict(complete, assign=True)
    return model.requires_grad_(False).eval()


def _name_of(state: Mapping[str, Tensor]) -> str:
    stages = tuple(_blocks(state, stage) for stage in range(1, 5))
    if stages[3] == 0 and stages[:3] in _CIFAR_NAMES:
        return _CIFAR_NAMES[stages[:3]]
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    for name, layout in _TORCHVISION.items():
        if layout == (block, stages):
            return name
    found = (
        f"{block} blocks {list(stages)} in layer1..layer4"
        if any(stages)
        else f"no layer1.0.conv1.weight but {_some(state)}"
    )
    raise ArchitectureError(f"the tensors fit no supported network ({', '.join(ARCHITECTURES)}): found {found}")


def _blocks(state: Mapping[str, Tensor], stage: int) -> int:
    count = 0
    while f"layer{stage}.{count}.conv1.weight" in state:
        count += 1
    return count


def _some(state: Mapping[str, Tensor]) -> str:
    return ", ".join(ascii(name[:60]) for name in list(state)[:3]) or "no tensor at all"


def _tensor(state: Mapping[str, Tensor], key: str, dimensions: int, name: str) -> Tensor:
    if key not in state:
        raise ArchitectureError(f"{name} needs tensor {key!r}, which is missing; found {_some(state)}")
    if state[key].dim() != dimensions:
        raise ArchitectureError(
            f"{name} needs {dimensions} dimensions in {key!r}; it has shape {list(state[key].shape)}"
        )
    return state[key]


def _compare(state: Mapping[str, Tensor], model: nn.Module, name: str) -> dict[str, Tensor]:
    """The model's own (meta) tensors, after checking that `state` has the same names, shapes and kinds."""
    expected: dict[str, Tensor] = model.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            if key.endswith(".num_batches_tracked"):
                continue
            raise ArchitectureError(f"{name} needs tensor {key!r}, which is missing")
        if state[key].shape != tensor.shape:
            shapes = f"{list(tensor.shape)}; it has {list(state[key].shape)}"
            raise ArchitectureError(f"{name} needs tensor {key!r} of shape {shapes}")
        if state[key].dtype != tensor.dtype:
            raise ArchitectureError(f"{name} needs tensor {key!r} as {tensor.dtype}; it is {state[key].dtype}")
    if unexpected := next((key for key in state if key not in expected), None):
        raise ArchitectureError(f"{name} has no tensor {unexpected[:80]!a}, but the file does")
    return expected


def _checked(architecture: Architecture) -> Architecture:
    cifar = architecture.name in _CIFAR
    stems, shortcuts = (("cifar",), ("pad", "projection")) if cifar else (("imagenet", "small"), ("projection",))
    choices: dict[str, tuple[Any, ...]] = {
        "name": ARCHITECTURES,
        "stem": stems,
        "shortcut": shortcuts,
        "in_channels": (1, 3),
    }
    for key, allowed in choices.items():
        if (value := getattr(architecture, key)) not in allowed:
            raise ArchitectureError(
                f"{key} has value {value!r}; {architecture.name} takes {', '.join(map(str, allowed))}"
            )
    if not 1 <= architecture.num_classes <= MAX_CLASSES:
        raise ArchitectureError(f"num_classes has value {architecture.num_classes}; it must be 1 to {MAX_CLASSES}")
    return architecture


def _skeleton(architecture: Architecture) -> nn.Module:
    """The network on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        if architecture.name in _CIFAR:
            blocks, shortcut = _CIFAR[architecture.name], architecture.shortcut
            return CifarResNet(blocks, architecture.num_classes, architecture.in_channels, shortcut).eval()
        maker = getattr(import_torchvision().models, architecture.name)
        model: nn.Module = maker(weights=None, num_classes=architecture.num_classes)
        if architecture.stem == "small":
            model.conv1 = nn.Conv2d(architecture.in_channels, 64, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        elif architecture.in_channels != 3:
            model.conv1 = nn.Conv2d(architecture.in_channels, 64, 7, stride=2, padding=3, bias=False)
        return model.eval()
