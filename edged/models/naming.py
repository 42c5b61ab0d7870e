"""Recognize a ResNet among the tensors of a state dict, whatever training code named them.

A body is found by its stem: the first convolution, under any prefix, with a first block next to it. Three ways of
naming what follows are known: torchvision's (which timm, kuangliu's CIFAR code, mmpretrain and most others share), that
of a Sequential of torchvision's children (fastai), that of transformers, and that of weiaicunzai's CIFAR code. The head
is the one linear layer that reads the body's features, wherever it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edged.errors import TooLargeError
from edged.models.head_layers import StoredLayer, likely_head, matching_layers, stored_layers

MAX_NETWORKS = 32  # in one state dict

Shapes = Mapping[str, tuple[int, ...]]

# Tensors that training leaves next to a network, by a component of their name.
_BESIDE = re.compile(
    r"(^|[._])(criterion|criteria|losses|loss\w*|\w+_loss|metrics?|\w+_metrics?|acc|accuracy|\w+_acc|\w+_accuracy|f1|\w+_f1|auroc|auc"
    r"|precision|recall|confmat|confusion\w*|n_averaged|total_ops|total_params|normalize|normalizer|pixel_mean|pixel_std)([._]|$)"
    r"|(^|\.)(image_|img_)?(mean|std)$"
)
_HEADS = re.compile(r"(^|\.)(fc|linear|classifier|head|heads|last_linear|logits|output)(\.|$)")
_COUNTER = "num_batches_tracked"
# Modules that wrap another one and put a part of their own into the names of its tensors.
_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_SHORTCUT = "(?:downsample|shortcut|identity_downsample|skip|residual|projection|proj)"
_MEMBER = r"(weight|bias|running_mean|running_var|num_batches_tracked)"

Translate = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Naming:
    """A way of naming the tensors of a body.

    Attributes:
        name: Name of the scheme, for messages.
        stem: Name of the first convolution's weight.
        first: Name of the first block's first convolution's weight.
        translate: Function from a name to torchvision's name; None for tensors that are not of the body.
    """

    name: str
    stem: str
    first: str
    translate: Translate


def _torchvision(name: str) -> str | None:
    if re.fullmatch(
        rf"(conv1\.(weight|bias)|bn1\.{_MEMBER}|layer\d\.\d+\.(conv\d\.(weight|bias)|bn\d\.{_MEMBER}))", name
    ):
        return name
    match = re.fullmatch(rf"(layer\d\.\d+)\.{_SHORTCUT}\.([01])\.{_MEMBER}", name)
    return f"{match[1]}.downsample.{match[2]}.{match[3]}" if match else None


_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _sequential(name: str) -> str | None:
    first, _, rest = name.partition(".")
    return _torchvision(f"{_CHILDREN[first]}.{rest}") if first in _CHILDREN else None


_PARTS = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}


def _transformers(name: str) -> str | None:
    if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{_PARTS[match[1]][0]}1.{match[2]}"
    if match := re.fullmatch(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)", name
    ):
        return f"layer{int(match[1]) + 1}.{match[2]}.downsample.{_PARTS[match[3]][1]}.{match[4]}"
    if match := re.fullmatch(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.(convolution|normalization)\.(\w+)", name
    ):
        return f"layer{int(match[1]) + 1}.{match[2]}.{_PARTS[match[4]][0]}{int(match[3]) + 1}.{match[5]}"
    return None


def _residual_function(name: str) -> str | None:
    if match := re.fullmatch(rf"conv1\.([01])\.{_MEMBER}", name):
        return f"{'bn' if match[1] == '1' else 'conv'}1.{match[2]}"
    if match := re.fullmatch(rf"conv(\d)_x\.(\d+)\.shortcut\.([01])\.{_MEMBER}", name):
        return f"layer{int(match[1]) - 1}.{match[2]}.downsample.{match[3]}.{match[4]}"
    if match := re.fullmatch(rf"conv(\d)_x\.(\d+)\.residual_function\.([013467])\.{_MEMBER}", name):
        convolution, is_norm = divmod(int(match[3]), 3)
        return f"layer{int(match[1]) - 1}.{match[2]}.{'bn' if is_norm else 'conv'}{convolution + 1}.{match[4]}"
    return None


NAMINGS = (
    Naming("torchvision", "conv1.weight", "layer1.0.conv1.weight", _torchvision),
    Naming("Sequential", "0.weight", "4.0.conv1.weight", _sequential),
    Naming(
        "transformers",
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        _transformers,
    ),
    Naming("residual_function", "conv1.0.weight", "conv2_x.0.residual_function.0.weight", _residual_function),
)


@dataclass(frozen=True)
class Network:
    """A ResNet that was found in a state dict.

    Attributes:
        prefix: Prefix of the names of its body.
        naming: Name of the scheme that the body follows.
        names: Name in the file, by edged's own name. Batch counters (num_batches_tracked) are left out.
        head: Name of the head's weight in the file; None where none was found.
        left_out: Names of other tensors next to it, which inference does not need.
        unknown: Names of tensors that belong to the network but to no layer that edged knows.
        heads: Names of tensors of heads, where the head has several layers or is ambiguous.
        head_layers: Layers of such a head.
        likely_head: Description of such a head that is most likely; see `edged.spec.Choice.head`.
    """

    prefix: str
    naming: str
    names: Mapping[str, str]
    head: str | None
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    heads: tuple[str, ...] = ()
    head_layers: tuple[StoredLayer, ...] = ()
    likely_head: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the head was found and every tensor of the network is known."""
        return self.head is not None and not self.unknown and not self.heads

    @property
    def unknown_in_body(self) -> list[str]:
        """The unknown tensors that are in the same parts of the network as tensors that are known."""
        parts = {_part(stored, self.prefix) for stored in self.names.values()}
        return [name for name in self.unknown if _part(name, self.prefix) in parts]


def find_networks(shapes: Shapes, head: Sequence[str] = ()) -> list[Network]:
    """Find every ResNet body among tensors, with its head.

    Where none fits, the names are read without the parts that wrappers of single blocks put into them.

    Args:
        shapes: Shape of each tensor, by name.
        head: Description of a head of several layers, see `edged.spec.Choice.head_layers`; empty for one linear layer.

    Raises:
        TooLargeError: There are more than `MAX_NETWORKS`.
    """
    networks = _find_as_named(shapes, head)
    stored = {_WRAPPER.sub("", name): name for name in shapes}
    if any(network.fits for network in networks) or len(stored) < len(shapes) or stored.keys() == shapes.keys():
        return networks
    unwrapped = _find_as_named({plain: shapes[name] for plain, name in stored.items()}, head)
    fitting = [_renamed(network, stored) for network in unwrapped if network.fits]
    return fitting or networks


def _find_as_named(shapes: Shapes, head: Sequence[str]) -> list[Network]:
    bodies = [*_bodies(shapes)]
    if len(bodies) > MAX_NETWORKS:
        raise TooLargeError(f"a state dict holds {len(bodies)} networks, the limit is {MAX_NETWORKS}")
    return [_network(shapes, body, [other for other, _ in bodies], tuple(head)) for body in bodies]


def _renamed(network: Network, stored: Mapping[str, str]) -> Network:
    """Return a network that fits with the names that its tensors have in the file."""
    return dataclasses.replace(
        network,
        names={name: stored[plain] for name, plain in network.names.items()},
        head=None if network.head is None else stored[network.head],
        left_out=tuple(stored[plain] for plain in network.left_out),
    )


def _bodies(shapes: Shapes) -> Iterable[tuple[str, Naming]]:
    for name, shape in shapes.items():
        for naming in NAMINGS:
            prefix = name.removesuffix(naming.stem)
            if len(shape) != 4 or not name.endswith(naming.stem) or prefix[-1:] not in ("", "."):
                continue
            if prefix + naming.first in shapes:
                yield prefix, naming


def _network(shapes: Shapes, body: tuple[str, Naming], bodies: list[str], words: tuple[str, ...]) -> Network:
    prefix, naming = body
    names: dict[str, str] = {}
    rest: list[str] = []
    for name in shapes:
        translated = naming.translate(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if translated is None:
            rest.append(name)
        elif not translated.endswith(_COUNTER):
            names[translated] = name
    others = [other for other in bodies if other and other != prefix and not prefix.startswith(other)]
    rest = [name for name in rest if not name.startswith(tuple(others))]
    candidates = [name for name in rest if not _BESIDE.search(name)]
    features = _features(shapes, names)
    layers = stored_layers(shapes, candidates)
    head = _described(layers, words, features) if words else _single(shapes, candidates, features)
    of_heads = _near_matrices(layers)
    kinds = {name: _kind(name, shapes[name], head, of_heads, prefix) for name in candidates}
    left_out = [name for name in rest if kinds.get(name, _LEFT_OUT) == _LEFT_OUT]
    names |= head.names
    if not any(name.startswith("layer4.") for name in names):
        names = {_cifar(name): stored for name, stored in names.items()}
    of_kind = {kind: tuple(name for name in candidates if kinds[name] == kind) for kind in (_UNKNOWN, _HEAD)}
    of_head = {*of_kind[_HEAD], *head.taken} if of_kind[_HEAD] else set()
    heads = tuple(layer for layer in layers if {*layer.tensors} & of_head)
    return Network(
        prefix,
        naming.name,
        names,
        head.weight,
        tuple(left_out),
        of_kind[_UNKNOWN],
        of_kind[_HEAD],
        heads,
        tuple(likely_head(heads, features)),
    )


_TAKEN, _LEFT_OUT, _UNKNOWN, _HEAD = "taken", "left out", "unknown", "head"


@dataclass(frozen=True)
class _Head:
    """The head of a network.

    Attributes:
        weight: Name of its last weight in the file; None where no head fits.
        names: Names of its tensors in the file, by edged's own names.
        taken: Names of all its tensors in the file.
        candidates: Names of the linear weights that read the body's features, where it is not clear which to take.
        group: Prefix that its layers share; None where they have none of their own.
    """

    weight: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    candidates: tuple[str, ...] = ()
    group: str | None = None


def _single(shapes: Shapes, names: Iterable[str], features: int | None) -> _Head:
    """Return the linear layer that reads the body's features; of several, the one that is named as a head."""
    matrices = [name for name in names if len(shapes[name]) == 2 and shapes[name][1] == features]
    named = [name for name in matrices if _HEADS.search(name)]
    heads = named if len(named) == 1 else matrices
    if len(heads) != 1 or not heads[0].endswith("weight"):
        return _Head(candidates=tuple(heads))
    weight, bias = heads[0], _bias(heads[0])
    found = {"fc.weight": weight} | ({"fc.bias": bias} if bias in shapes else {})
    return _Head(weight, found, frozenset({weight, bias}), group=_parent(weight.rpartition(".")[0]))


def _described(layers: Sequence[StoredLayer], words: tuple[str, ...], features: int | None) -> _Head:
    """Return the head of several layers that the user described."""
    matching = () if features is None else matching_layers(layers, words, features)
    if not matching:
        return _Head()
    stored = [(number, layer, member) for number, layer in matching for member in layer.members]
    names = {
        f"fc.{number}.{member}": f"{layer.name}.{member}" for number, layer, member in stored if member != _COUNTER
    }
    taken = frozenset(name for _, layer in matching for name in layer.tensors)
    last = matching[-1][1]
    return _Head(f"{last.name}.weight", names, taken, group=_parent(last.name))


def _kind(name: str, shape: tuple[int, ...], head: _Head, of_heads: frozenset[str], prefix: str) -> str:
    """Classify a tensor that is not of the body: of the head, of another layer of the head, left out, or unknown."""
    if name in head.taken:
        return _TAKEN
    group = head.group if head.group is not None and not prefix.startswith(head.group) else None
    if (group and name.startswith(group)) or name in head.candidates or (head.weight is None and len(shape) == 2):
        return _HEAD
    if head.weight is None and name in of_heads:
        return _HEAD
    outside = prefix and not name.startswith(prefix.split(".")[0] + ".")
    return _LEFT_OUT if outside and len(shape) < 2 else _UNKNOWN  # a statistic that is not of the network


def _near_matrices(layers: Sequence[StoredLayer]) -> frozenset[str]:
    """Return the names of the tensors of linear layers, and of other layers with the same parent as one."""
    parents = {_parent(layer.name) for layer in layers if layer.kind == "linear"}
    return frozenset(name for layer in layers if _parent(layer.name) in parents for name in layer.tensors)


def _part(name: str, prefix: str) -> str:
    """Return the name of a tensor up to the first dot after a prefix."""
    return name[: len(prefix)] + name[len(prefix) :].partition(".")[0]


def _parent(layer: str) -> str | None:
    parent = layer.rpartition(".")[0]
    return f"{parent}." if parent else None


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _cifar(name: str) -> str:
    """Return the name of a tensor in `CifarResNet`, given its name in torchvision."""
    return re.sub(r"^fc\.", "linear.", name.replace(".downsample.", ".shortcut."))


def _features(shapes: Shapes, names: Mapping[str, str]) -> int | None:
    """Return the number of channels that the last block outputs."""
    stages = sorted({name.split(".")[0] for name in names if name.startswith("layer")})
    if not stages:
        return None
    norms = [name for name in names if re.fullmatch(rf"{stages[-1]}\.\d+\.bn\d\.weight", name)]
    last = max(norms, key=lambda name: (int(name.split(".")[1]), name), default=None)
    return None if last is None else shapes[names[last]][0]
