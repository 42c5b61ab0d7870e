"""Recognize the network that a state dict belongs to, and build it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edged.errors import ArchitectureError
from edged.models import cluster_affine
from edged.models.architecture import ARCHITECTURES, CIFAR, CLASSIFIERS, DETECTORS, TORCHVISION, Architecture, checked
from edged.models.head_description import CONCAT_POOL, linear
from edged.models.other_networks import ADVICE, other_network
from edged.models.resnet import BLOCKS, CifarResNet, ResNet, Variant
from edged.models.yolov5.network import YoloV5, check_sizes
from edged.models.yolov5.plan import Plan
from edged.spec import Choice
from edged.spelling import names_to_choose

__all__ = ["ARCHITECTURES", "Architecture", "build", "load_model", "recognize"]

_CIFAR_NAMES: Mapping[tuple[int, ...], str] = {(blocks,) * 3: name for name, blocks in CIFAR.items()}
_LEAST_MATCHES = 10  # tensors that a network has to share with another to be near it
_COUNTER = ".num_batches_tracked"
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
# The first convolution of a YOLOv5, and of one of v5.0 and before.
_YOLOV5_STEMS = ("model.0.conv.weight", "model.0.conv.conv.weight")


def recognize(
    state: Mapping[str, Tensor],
    pinned: str | None = None,
    plan: Plan | None = None,
    problem: str | None = None,
    choice: Choice | None = None,
) -> Architecture:
    """Recognize the network of a state dict from the names and shapes of its tensors.

    Args:
        state: Tensors by name. Not modified.
        pinned: The name that the user expects, or None; `yolov5` stands for any of its sizes.
        plan: Plan of a detector, as read from the checkpoint (`Checkpoint.plan`); None for a classifier.
        problem: Reason why the tensors form no known network (`Checkpoint.problem`); None if they may form one.
        choice: What the user says of what the tensors do not tell; None for what is usual.

    Raises:
        ArchitectureError: The tensors fit no supported network, or not the pinned one. The message names the first
            tensor that differs.
    """
    if pinned is not None and pinned not in ARCHITECTURES:
        raise ArchitectureError(
            f"unknown architecture {pinned!r}; {names_to_choose(pinned, ARCHITECTURES, 'choose one of')}"
        )
    if plan is not None:
        return _recognize_detector(state, pinned, plan)
    if problem is not None:
        raise ArchitectureError(problem)
    if pinned in DETECTORS or any(stem in state or stem.removeprefix("model.") in state for stem in _YOLOV5_STEMS):
        raise ArchitectureError(
            "a YOLOv5 is known by its yaml, which the file does not hold; give the .pt that its training saved"
        )
    choice = choice or Choice()
    name = _name_of(state)
    if pinned not in (None, name):
        raise ArchitectureError(f"the file holds a {name}, not the {pinned} that was asked for; set arch: {name}")
    cifar = name in CIFAR
    stem = _tensor(state, "conv1.weight", 4, name)
    head, classes = _head(state, "linear" if cifar else "fc", name, choice)
    projected = not cifar or "layer2.0.shortcut.0.weight" in state
    architecture = Architecture(
        name=name,
        num_classes=classes,
        stem="cifar" if cifar else "small" if stem.shape[2] == 3 else "imagenet",
        in_channels=stem.shape[1],
        shortcut="projection" if projected else "pad",
        stem_pooling=None if choice.stem_pooling == "auto" else choice.stem_pooling == "true",
        stride_in="3x3" if choice.stride_in == "auto" else choice.stride_in,
        head=head,
    )
    model = _skeleton(checked(architecture))
    try:
        _compare(state, model, name)
    except ArchitectureError:
        other = other_network({name: tuple(tensor.shape) for name, tensor in state.items()})
        if other is not None:
            raise ArchitectureError(f"it holds {other}, which edged does not know; {ADVICE}") from None
        raise
    return architecture


def _head(state: Mapping[str, Tensor], at: str, name: str, choice: Choice) -> tuple[tuple[str, ...], int]:
    """Return the layers of the head, () for one linear layer with a bias, and the number of classes."""
    layers = choice.head_layers
    if not layers and f"{at}.bias" in state:
        return (), _tensor(state, f"{at}.weight", 2, name).shape[0]
    head, index, classes = [], 0, 0
    for layer in layers or ("linear",):
        if layer == "linear":
            key = f"{at}.{index}.weight" if layers else f"{at}.weight"
            classes = _tensor(state, key, 2, name).shape[0]
            head.append(linear(classes, bias=f"{key.removesuffix('weight')}bias" in state))
        else:
            head.append(layer)
        index += layer != CONCAT_POOL
    return tuple(head), classes


def _recognize_detector(state: Mapping[str, Tensor], pinned: str | None, plan: Plan) -> Architecture:
    stem = next((state[name] for name in _YOLOV5_STEMS if name in state), None)
    if stem is None or stem.dim() != 4:
        raise ArchitectureError(f"yolov5 needs tensor {_YOLOV5_STEMS[0]!r}, which is missing; found {_some(state)}")
    focus = plan.rows[0].block == "Focus"
    architecture = checked(Architecture.detector(plan, stem.shape[1] // (4 if focus else 1)))
    if pinned not in (None, "yolov5", architecture.name):
        raise ArchitectureError(f"the file holds a {architecture.name}, not the {pinned} that was asked for")
    model = _skeleton(architecture)
    _compare(state, model, architecture.name)
    check_sizes(model, plan, architecture.in_channels)
    return architecture


def build(architecture: Architecture) -> nn.Module:
    """Build the network in eval mode with uninitialized tensors."""
    return _skeleton(architecture).to_empty(device="cpu")


def load_model(state: Mapping[str, Tensor], architecture: Architecture) -> nn.Module:
    """Build the network with the weights of `state`, in eval mode, without gradients.

    Args:
        state: float32 tensors by name. The model uses them without a copy. A batch counter (num_batches_tracked) that
            is missing, misshapen or not an integer becomes 0. That of an artifact may have a `ClusterAffine`.
        architecture: Architecture that `recognize` returned or that a manifest holds.

    Raises:
        ArchitectureError: A tensor is missing, unexpected, misshapen or of the wrong type.
    """
    model = _skeleton(checked(architecture))
    centroids = state.get(f"{cluster_affine.NAME}.centroids")
    if centroids is not None and isinstance(model, CifarResNet | ResNet):
        with torch.device("meta"):
            model.correction = cluster_affine.ClusterAffine.empty(len(centroids), architecture.num_classes)
    expected = _compare(state, model, architecture.name)
    complete = {
        name: _counter(state.get(name), tensor) if name.endswith(_COUNTER) else state[name]
        for name, tensor in expected.items()
    }
    model.load_state_dict(complete, assign=True)
    return model.requires_grad_(False).eval()


def _counter(stored: Tensor | None, expected: Tensor) -> Tensor:
    """Return the stored batch counter of a BatchNorm, or 0 where there is none or it cannot be one.

    Checkpoints from before torch 0.4.1 lack the counters, and inference does not use them.
    """
    if stored is None or stored.shape != expected.shape or stored.dtype not in _INTEGERS:
        return torch.zeros(expected.shape, dtype=expected.dtype)
    return stored.to(expected.dtype)


def _name_of(state: Mapping[str, Tensor]) -> str:
    stages = tuple(_blocks(state, stage) for stage in range(1, 5))
    if stages[3] == 0 and stages[:3] in _CIFAR_NAMES:
        return _CIFAR_NAMES[stages[:3]]
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    for name, layout in TORCHVISION.items():
        if layout == (block, stages):
            _refuse_variants(state, name)
            return name
    if (block, stages) in _OTHER_DEPTHS:
        raise ArchitectureError(
            f"it is a {_OTHER_DEPTHS[block, stages]}, which edged does not know; give one of {', '.join(CLASSIFIERS)}"
        )
    found = (
        f"{block} blocks {list(stages)} in layer1..layer4"
        if any(stages)
        else f"no layer1.0.conv1.weight but {_some(state)}"
    )
    raise ArchitectureError(
        f"the tensors fit no supported network ({', '.join(CLASSIFIERS)}): found {found}{_nearest(state)}"
    )


def _nearest(state: Mapping[str, Tensor]) -> str:
    """Return which supported network comes nearest, and the tensors that fit nothing of it; "" if none comes near."""
    best, matching = "", set[str]()
    size = 0
    for name in CLASSIFIERS:
        cifar = name in CIFAR
        usual = Architecture(name, 1, "cifar" if cifar else "imagenet")
        expected = _skeleton(usual).state_dict()
        found = {key for key, tensor in expected.items() if key in state and state[key].shape == tensor.shape}
        if len(found) > len(matching):
            best, matching, size = name, found, len(expected)
    if len(matching) < _LEAST_MATCHES:
        return ""
    others = [key for key in state if key not in matching and not re.match(r"(fc|linear|conv1)\.", key)]
    named = ", ".join(ascii(key[:40]) for key in others[:2]) or "none"
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return f"; nearest is {best}, {len(matching)} of its {size} tensors fit; what fits nothing: {named}{more}"


# Published networks with the blocks of a ResNet but in other numbers.
_OTHER_DEPTHS: Mapping[tuple[str, tuple[int, ...]], str] = {
    ("basic", (1, 1, 1, 1)): "resnet10",
    ("bottleneck", (1, 1, 1, 1)): "resnet14",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 24, 36, 3)): "resnet200",
}
# Networks with the same blocks but wider or grouped 3x3 convolutions, by the shape of that of the first block.
_VARIANTS: Mapping[tuple[str, tuple[int, ...]], str] = {
    ("resnet50", (128, 128)): "wide_resnet50_2",
    ("resnet101", (128, 128)): "wide_resnet101_2",
    ("resnet50", (128, 4)): "resnext50_32x4d",
    ("resnet101", (256, 8)): "resnext101_32x8d",
    ("resnet101", (256, 4)): "resnext101_64x4d",
}


def _refuse_variants(state: Mapping[str, Tensor], name: str) -> None:
    """Reject by name a network that has the blocks of a ResNet but other convolutions.

    Raises:
        ArchitectureError: The network is such a variant.
    """
    middle = state.get("layer1.0.conv2.weight")
    variant = None if middle is None or middle.dim() != 4 else _VARIANTS.get((name, tuple(middle.shape[:2])))
    if variant is not None:
        raise ArchitectureError(f"it is a {variant}, which edged does not know; give one of {', '.join(CLASSIFIERS)}")


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
    """Check that `state` has the names, shapes and types of the model's own (meta) tensors, and return those."""
    expected: dict[str, Tensor] = model.state_dict()
    for key, tensor in expected.items():
        if key.endswith(_COUNTER):  # of any kind, or missing: inference does not use it
            continue
        if key not in state:
            raise ArchitectureError(f"{name} needs tensor {key!r}, which is missing")
        if state[key].shape != tensor.shape:
            shapes = f"{list(tensor.shape)}; it has {list(state[key].shape)}"
            raise ArchitectureError(f"{name} needs tensor {key!r} of shape {shapes}")
        if state[key].dtype != tensor.dtype:
            raise ArchitectureError(f"{name} needs tensor {key!r} as {tensor.dtype}; it is {state[key].dtype}")
    if unexpected := next((key for key in state if key not in expected), None):
        raise ArchitectureError(f"{name} has no tensor {unexpected[:80]!a}, but the file does")
    return expected


def _skeleton(architecture: Architecture) -> nn.Module:
    """Build the network on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        if architecture.plan is not None:
            return YoloV5(architecture.plan, architecture.in_channels).eval()
        if architecture.name in CIFAR:
            blocks, shortcut = CIFAR[architecture.name], architecture.shortcut
            classes, channels = architecture.num_classes, architecture.in_channels
            return CifarResNet(blocks, classes, channels, shortcut, architecture.head).eval()
        block, layout = TORCHVISION[architecture.name]
        variant = Variant(architecture.stem_pooling, architecture.stride_in, architecture.head)
        classes, channels = architecture.num_classes, architecture.in_channels
        return ResNet(BLOCKS[block], layout, classes, channels, architecture.stem, variant).eval()
