"""Load a checkpoint file as a full-precision network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edged.errors import RejectedError, UsageError
from edged.models.checkpoint import MAX_FILE_BYTES, Checkpoint, read_checkpoint, shown_name
from edged.models.layers import own_memory
from edged.models.readings import assumptions, readings
from edged.models.registry import Architecture, load_model, recognize
from edged.models.yolov5.plan import Plan
from edged.progress import ProgressListener, SilentListener
from edged.spec import Choice, InputSpec
from edged.spelling import one_line


@dataclass(frozen=True)
class Source:
    """The file that a network was loaded from.

    Attributes:
        sha256: Digest of the whole file, hex.
        bytes: Size of the file in bytes.
        name: Name of the file as the user knows it.
        format: "torch-zip", "torch-legacy" or "safetensors".
    """

    sha256: str
    bytes: int
    name: str
    format: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class Selection:
    """The tensors of a file that the network was made of.

    Attributes:
        key: Key of the state dict in the file, nested keys joined by dots; "" for the top.
        prefix: Prefix of the names of its tensors.
        weights: "averaged" where the file says that they are an average over training, otherwise "last".
        left_out: Names of other tensors next to the network's, which inference does not need.
        assumptions: What is assumed because neither the tensors nor the user tell.
        readings: How each reading of the file did on labeled images, see `edged.pipeline.readings`; None if none was
            tried.
    """

    key: str = ""
    prefix: str = ""
    weights: str = "last"
    left_out: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    readings: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; what was tried is there only if something was."""
        tried = {} if self.readings is None else {"readings": dict(self.readings)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in plain.items() if name != "readings"} | tried


@dataclass(frozen=True)
class LoadedNetwork:
    """A full-precision network, with its architecture, its input and its source.

    Attributes:
        model: The network: float32, eval mode, on the CPU, without gradients. Maps images [batch, channels, size, size]
            to logits [batch, classes], or to a detector's raw outputs [batch, predictions, 5 + classes].
        architecture: Architecture of the network.
        input: Preparation of its images.
        source: The file that it was loaded from.
        selection: Which tensors of the file it was made of.
        readings: Architectures that the file may mean, `architecture` first.
        choice: What the user said of the file.
        class_names: Names of the classes that the file holds; None if it holds none, or several that fit.
    """

    model: nn.Module
    architecture: Architecture
    input: InputSpec
    source: Source
    selection: Selection = Selection()
    readings: tuple[Architecture, ...] = ()
    choice: Choice = field(default_factory=Choice)
    class_names: tuple[str, ...] | None = None


# (architecture, input, names of the classes in the file or None): raises if the network is not the one that is wanted
NetworkCheck = Callable[[Architecture, InputSpec, "tuple[str, ...] | None"], None]


def load_checkpoint(
    path: str | Path,
    arch: str | None = None,
    *,
    input_settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    choice: Choice | None = None,
    check_network: Callable[[Architecture], None] = lambda architecture: None,
    check: NetworkCheck = lambda architecture, spec, names: None,
    listener: ProgressListener | None = None,
) -> LoadedNetwork:
    """Load a checkpoint file that may come from anywhere; no code of the file is run.

    Reads state dicts of the ResNets of torchvision and CIFAR (.pt, .pth, .safetensors) and the .pt files that YOLOv5
    v6.0 to v7.0 saves. The architecture is recognized from the names and shapes of the tensors.

    Args:
        path: The file. Its format is recognized by its content.
        arch: Expected architecture, one of edged.models.names.ARCHITECTURES; None accepts any of them.
        input_settings: Fields of InputSpec that differ from the architecture's default: size, resize, mean, std.
        name: Name of the file in messages and manifests, where it is not that of `path`.
        max_bytes: Limit on the size of the file, in bytes.
        choice: Which network to take where the file holds several, and what its tensors do not tell; None looks for
            the one that fits, and takes what is usual.
        check_network: Called in the stage "verify", once the architecture is known; its errors end the loading.
        check: Called in the stage "verify", once the input and the names of the classes are known too; its errors end
            the loading.
        listener: Receives the stages "verify" (reading, checking and recognizing) and "load" (building the network).

    Returns:
        The network with its architecture, input and source. The file is no longer needed.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, too large, or holds no finite state dict.
        ArchitectureError: The tensors fit no supported network, or not `arch`.
        UsageError: An input setting is impossible for this network.
        AccessError: The file may not be read.
    """
    path, listener = Path(path), listener or SilentListener()
    name = name or path.name
    with listener.stage("verify"), errors_named(path, name):
        checkpoint, architecture = read_network(path, arch, choice, max_bytes, copied=True)
        check_network(architecture)
        spec = _input(architecture, input_settings or {}, name)
        names = checkpoint.names_of(architecture.num_classes)
        check(architecture, spec, names)
    with listener.stage("load"), errors_named(path, name):
        model = load_model(checkpoint.state, architecture)
        checkpoint = dataclasses.replace(checkpoint, state={})  # each tensor is freed once the network has its own
        model = own_memory(model)
    source = Source(checkpoint.sha256, checkpoint.file_bytes, name, checkpoint.format)
    weights = "averaged" if checkpoint.averaged else "last"
    assumed = (*assumptions(architecture, choice), *checkpoint.assumed)
    selection = Selection(checkpoint.key, checkpoint.prefix, weights, checkpoint.left_out, assumed)
    others = tuple(readings(architecture, choice))
    return LoadedNetwork(model, architecture, spec, source, selection, others, choice or Choice(), names)


def _input(architecture: Architecture, settings: Mapping[str, Any], name: str) -> InputSpec:
    """Return the input of a network with the user's settings.

    Raises:
        UsageError: A setting is impossible for this network, which the message names.
    """
    try:
        spec = architecture.default_input.override(settings)
        architecture.check_input(spec)
    except UsageError as error:
        raise UsageError(f"{name} holds a {architecture.name}: {error}") from None
    return spec


def read_network(
    path: Path, arch: str | None, choice: Choice | None, max_bytes: int = MAX_FILE_BYTES, *, copied: bool = False
) -> tuple[Checkpoint, Architecture]:
    """Read a checkpoint file and recognize its network, by names and shapes before any value is read.

    Args:
        path: The file.
        arch: Expected architecture, or None.
        choice: Which network to take, and what its tensors do not tell.
        max_bytes: Limit on the size of the file, in bytes.
        copied: Whether tensors get memory of their own; by default they stay mapped from the file.

    Raises:
        CheckpointError: The file is no checkpoint that edged reads.
        ArchitectureError: The tensors fit no supported network, or not `arch`.
        AccessError: The file may not be read.
    """
    found: list[Architecture] = []

    def check(state: Mapping[str, Tensor], plan: Plan | None, problem: str | None) -> None:
        found.append(recognize(state, arch, plan, problem, choice))

    checkpoint = read_checkpoint(path, max_bytes=max_bytes, choice=choice, check=check, copied=copied)
    return checkpoint, found[0]


@contextmanager
def errors_named(path: Path, name: str) -> Iterator[None]:
    """Begin the messages of rejections with the file's name as the user knows it, once."""
    try:
        yield
    except RejectedError as error:
        raise type(error)(f"{one_line(name)}: {str(error).removeprefix(f'{shown_name(path)}: ')}") from error
