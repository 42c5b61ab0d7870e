"""Read an untrusted file as a state dict of float32 tensors. No code of the file runs; see pickle_scan."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edged.errors import (
    AccessError,
    ArchitectureError,
    CheckpointError,
    NonFiniteError,
    TooLargeError,
    UnsafeCheckpointError,
)
from edged.models.class_names import find_class_names
from edged.models.inert_pickle import DTYPES, StoredTensor, UnknownTensor
from edged.models.naming import Network
from edged.models.other_networks import ADVICE, other_network, quantized_by, reparametrized
from edged.models.pickle_scan import quoted
from edged.models.state_dicts import MAX_NAME, MAX_TENSORS, Found, find_state, kind_of, shapes_of
from edged.models.yolov5.pickled import pickled_model, read_model
from edged.models.yolov5.plan import Plan
from edged.models.zip_container import Contents, pieces, read_contents
from edged.spec import Choice
from edged.spelling import one_line

MAX_FILE_BYTES = 2 << 30
MAX_WRAPPERS = 4
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "net.", "network.")
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that passed every check.

    Attributes:
        state: Tensors by edged's own names. Floating point ones are float32 and finite.
        sha256: Digest of the whole file, hex.
        file_bytes: Size of the file in bytes.
        format: "torch-zip", "torch-legacy" or "safetensors".
        plan: Plan of a YOLOv5 detector; None in all other checkpoints.
        key: Key of the state dict in the file, nested keys joined by dots; "" for the top.
        prefix: Prefix of the names of its tensors in the file.
        averaged: Whether the file says that the weights are an average over training.
        left_out: Names of other tensors next to the network's.
        dtypes: Types in which the values are stored, such as "float16".
        problem: Reason why the names of the tensors belong to no known network; None if they may belong to one.
        class_names: Lists of class names that are saved next to a classifier's weights.
        assumed: What was assumed where the file does not tell.
    """

    state: dict[str, Tensor]
    sha256: str
    file_bytes: int
    format: str
    plan: Plan | None = None
    key: str = ""
    prefix: str = ""
    averaged: bool = False
    left_out: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    problem: str | None = None
    class_names: tuple[tuple[str, ...], ...] = ()
    assumed: tuple[str, ...] = ()

    def names_of(self, count: int) -> tuple[str, ...] | None:
        """Return the names of a detector's classes, or those that are saved next to the weights of a classifier.

        Args:
            count: Number of classes of the network.

        Returns:
            Names by class index; None if the file has none for so many classes, or several lists of them.
        """
        if self.plan is not None:
            return self.plan.names
        fitting = [names for names in self.class_names if len(names) == count]
        return fitting[0] if len(fitting) == 1 else None


# (tensors without values, plan of a detector, reason why they are no known network): raises if it is no known network
Check = Callable[[Mapping[str, Tensor], "Plan | None", "str | None"], object]


def _accept(*_: object) -> None:
    pass


def read_checkpoint(
    path: Path,
    *,
    max_bytes: int = MAX_FILE_BYTES,
    choice: Choice | None = None,
    check: Check = _accept,
    copied: bool = False,
) -> Checkpoint:
    """Read a .pt, .pth, .th or .safetensors file that may come from anywhere.

    float32 tensors stay on disk, mapped copy-on-write, until they are used; so the file must not be overwritten in
    place while they are in use. Other types take four bytes per stored value. Where a file holds averaged weights next
    to the last ones, the averaged ones are read; everything else stays on disk.

    Args:
        path: The file. Its format is recognized by its content.
        max_bytes: Limit on the file's size.
        choice: Which network to take where the file holds several; None looks for the one that fits.
        check: Called before any value is read with names, shapes and types of the tensors, which are on the meta device
            and have the types of `Checkpoint.state`, with the plan and with the problem. Its errors end the reading.
        copied: Whether each tensor is copied to memory of its own, one after the other, instead of staying mapped.

    Raises:
        CheckpointError: The file is missing, not a checkpoint, damaged, or holds no state dict.
        UnsafeCheckpointError: The file names functions that run code, or is built to exhaust the machine.
        TooLargeError: The file is over `max_bytes`, or has too many tensors.
        NonFiniteError: A tensor holds NaN or infinity.
        ArchitectureError: The yaml of a YOLOv5 describes an unknown network, or another one than was saved.
        AccessError: The file may not be read.
    """
    try:
        with _opened(path, max_bytes) as descriptor, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            # By descriptor: the libraries read the very file that was checked, even if its name now refers to another.
            contents = read_contents(data, f"/proc/self/fd/{descriptor}")
            model = pickled_model(contents.tree, choice)
            if model is None:
                return _classifier(contents, data, choice, check, copied)
            state, plan, averaged = read_model(model, contents)
            dtypes = _float_types(state)
            checked = _checked_tensors(state, len(data))
            check(_without_values(checked), plan, None)
            tensors = _as_float32(checked, contents, copied)
            return Checkpoint(
                tensors, _sha256(data), len(data), contents.format, plan, model.key, "", averaged, (), dtypes
            )
    except (CheckpointError, ArchitectureError) as error:
        raise type(error)(f"{shown_name(path)}: {error}") from None


def shown_name(path: Path) -> str:
    """Return the name of a file as messages show it: on one line, and not empty for a folder such as "."."""
    return one_line(path.name or str(path))


def _classifier(contents: Contents, data: mmap.mmap, choice: Choice | None, check: Check, copied: bool) -> Checkpoint:
    found = find_state(contents.tree, choice)
    network = found.network
    left_out = network.left_out if network is not None and network.fits else ()
    _refuse_quantized({name: value for name, value in found.entries.items() if name not in left_out})
    if network is None or not network.fits:
        entries, problem = strip_prefixes(found.entries), _problem(found, choice)
    else:
        entries = {name: found.entries[stored] for name, stored in network.names.items()}
        problem = None
    state = {name: _read(contents, name, value) for name, value in entries.items()}
    dtypes = _float_types(state)
    checked = _checked_tensors(state, len(data))
    check(_without_values(checked), None, problem)
    return Checkpoint(
        state=_as_float32(checked, contents, copied),
        sha256=_sha256(data),
        file_bytes=len(data),
        format=contents.format,
        key=found.key,
        prefix="" if network is None else network.prefix,
        averaged=found.averaged,
        left_out=left_out,
        dtypes=dtypes,
        problem=problem,
        class_names=find_class_names(contents.tree),
        assumed=_assumed(found),
    )


def _assumed(found: Found) -> tuple[str, ...]:
    if found.statistics is None:
        return ()
    source = f"key {found.statistics!a}" if found.statistics else "the top of the file"
    return (f"the running statistics of BatchNorm are those of {source}: {found.key!a} holds parameters only",)


def _without_values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the meta device, floating point ones as float32: names and shapes without memory."""
    return {
        name: torch.empty(
            tensor.shape, dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype, device="meta"
        )
        for name, tensor in state.items()
    }


def _refuse_quantized(entries: Mapping[Any, Any]) -> None:
    """Reject a network that is quantized already, with the tool that did it.

    Args:
        entries: Entries of its state dict, without those that are not of the network, such as a loss's.

    Raises:
        CheckpointError: It is one.
    """
    kinds = [value.kind for value in entries.values() if isinstance(value, UnknownTensor)]
    tool = quantized_by(name for name in entries if isinstance(name, str) and len(name) <= MAX_NAME)
    if tool is None and not any("qtensor" in kind or "quant" in kind.lower() for kind in kinds):
        return
    by = "" if tool is None else f" (by {tool})"
    raise CheckpointError(f"the network is quantized already{by}; give the checkpoint of full precision it was made of")


def _problem(found: Found, choice: Choice | None) -> str | None:
    """Return the reason why a state dict is of no network that edged knows; None if its tensors must tell."""
    shapes, network = shapes_of(found.entries), found.network
    computed = reparametrized(shapes if network is None else network.unknown_in_body)
    if computed is not None:
        return computed
    other = other_network(shapes)
    if other is not None:
        return f"it holds {other}, which edged does not know; {ADVICE}"
    return None if network is None else _misfit(network, choice)


def _float_types(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}))


def _sha256(data: mmap.mmap) -> str:
    digest = hashlib.sha256()
    for piece in pieces(data, 0, len(data)):
        digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
    except PermissionError:
        raise AccessError(f"{path}: permission denied; make the file readable for this user") from None
    except OSError as error:
        raise CheckpointError(f"cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            folder = stat.S_ISDIR(status.st_mode)
            raise CheckpointError("it is a folder; give a file" if folder else "it is not a regular file")
        if status.st_size == 0:
            raise CheckpointError("the file is empty; copy it again")
        if status.st_size > max_bytes:
            raise TooLargeError(f"the file has {status.st_size} bytes, the limit is {max_bytes}")
        yield descriptor
    finally:
        os.close(descriptor)


def _read(contents: Contents, name: Any, value: Any) -> Tensor:
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise CheckpointError(f"{quoted(name)} is no name of a tensor")
    if isinstance(value, UnknownTensor):
        raise CheckpointError(
            f"tensor {quoted(name)} is of a kind that edged does not know ({quoted(value.kind)}); save the network"
            " unquantized and whole, as float32"
        )
    if not isinstance(value, StoredTensor):
        raise CheckpointError(f"entry {quoted(name)} of the state dict is a {kind_of(value)}, not a tensor; remove it")
    try:
        return contents.tensor(value)
    except CheckpointError as error:
        raise CheckpointError(f"tensor {quoted(name)}: {error}") from None


def _misfit(network: Network, choice: Choice | None) -> str:
    """Return the reason why a state dict with a ResNet's body is no network that edged knows."""
    if network.unknown:
        some = ", ".join(quoted(name, 60) for name in network.unknown[:3])
        more = f" and {len(network.unknown) - 3} more" if len(network.unknown) > 3 else ""
        return f"it holds a ResNet's body (prefix {network.prefix!a}) and tensors that fit nothing: {some}{more}"
    if network.heads:
        return _misfit_of_head(network, () if choice is None else choice.head)
    return f"it holds a ResNet's body (prefix {network.prefix!a}) without a classifier; save the whole network"


def _misfit_of_head(network: Network, asked: tuple[str, ...]) -> str:
    layers = ", ".join(map(str, network.head_layers[:6])) or ", ".join(quoted(name, 60) for name in network.heads[:4])
    if asked:
        return f"head: [{', '.join(asked)}] does not fit the head of the file, which has {layers}"
    if len(network.head_layers) < 2 or not network.likely_head:
        return f"it has several heads or layers that do not follow each other ({layers}); save a network with one head"
    likely = ", ".join(network.likely_head)
    return (
        f"its head has several layers ({layers}), and what stands between them is code; say it with head:, such as"
        f" head: [{likely}]"
    )


def strip_prefixes(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return `state` without the prefixes that wrappers put before every name."""
    stripped = dict(state)
    for _ in range(MAX_WRAPPERS):
        for prefix in PREFIXES:
            if stripped and all(isinstance(name, str) and name.startswith(prefix) for name in stripped):
                stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
    return stripped


def _checked_tensors(state: Mapping[str, Tensor], file_bytes: int) -> dict[str, Tensor]:
    """Check that `state` holds only named tensors and is no larger than the file, and return it."""
    if len(state) > MAX_TENSORS:
        raise TooLargeError(f"the state dict has {len(state)} entries, the limit is {MAX_TENSORS}")
    for name, value in state.items():
        _check_tensor(name, value)
    # Each tensor is no larger than its storage, so a sum above the file size means shared storages.
    total = sum(tensor.nbytes for tensor in state.values())
    if total > file_bytes:
        raise UnsafeCheckpointError(f"its tensors share storage and claim {total} bytes, the file has {file_bytes}")
    return {name: tensor.detach() for name, tensor in state.items()}


def _check_tensor(name: str, tensor: Tensor) -> None:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_neg()
    if not plain or tensor.dtype not in DTYPES or tensor.device.type != "cpu":
        raise CheckpointError(f"tensor {quoted(name)} is of a kind that edged does not know; save it as float32")
    if tensor.dim() > MAX_DIMENSIONS:
        raise CheckpointError(f"tensor {quoted(name)} has {tensor.dim()} dimensions, the limit is {MAX_DIMENSIONS}")
    if tensor.numel() == 0:
        raise CheckpointError(f"tensor {quoted(name)} has no values (shape {list(tensor.shape)})")
    stored = tensor.untyped_storage().nbytes() // tensor.itemsize
    if tensor.numel() > stored:
        raise UnsafeCheckpointError(
            f"tensor {quoted(name)} of shape {list(tensor.shape)} expands a storage of {stored} values; "
            "save it with .contiguous()"
        )


def _as_float32(tensors: Mapping[str, Tensor], contents: Contents, copied: bool) -> dict[str, Tensor]:
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    state = {}
    for name, stored in tensors.items():
        # A zip that torch did not write may hold values at addresses that are no multiple of their size.
        aligned = stored if stored.data_ptr() % stored.itemsize == 0 else stored.clone()
        tensor = aligned.contiguous()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
            if not np.isfinite(tensor.numpy()).all():  # one thread: waking torch's costs more than small tensors do
                raise NonFiniteError(f"tensor {quoted(name)} holds NaN or infinity; its training diverged")
        # Tensors of one storage get memory of their own: changing one must not change another.
        shared = users[stored.untyped_storage().data_ptr()] > 1
        mapped = tensor.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
        state[name] = tensor.clone() if mapped and (shared or copied) else tensor
        contents.forget_pages()
    return state
