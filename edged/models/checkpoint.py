"""An untrusted file becomes a state dict of float32 tensors. No code of the file runs; see pickle_scan."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
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
from edged.models.allowlist import DTYPES, YOLOV5, Stub
from edged.models.pickle_scan import quoted
from edged.models.yolov5.pickled import pickled_model, read_model
from edged.models.yolov5.plan import Plan
from edged.models.zip_container import pieces, read_contents

MAX_FILE_BYTES = 2 << 30
MAX_TENSORS = 20_000
MAX_NAME_LENGTH = 512
MAX_WRAPPERS = 4  # {"model": {"state_dict": {...}}} and the like
WRAPPER_KEYS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that passed every check.

    Attributes:
        state: Tensors by name, wrapper keys and `module.` removed. Floating point ones are float32 and finite.
        sha256: Of the whole file, hex.
        file_bytes: Size of the file.
        format: "torch-zip", "torch-legacy" or "safetensors".
        plan: What a YOLOv5 checkpoint says of its network; None in all others.
    """

    state: dict[str, Tensor]
    sha256: str
    file_bytes: int
    format: str
    plan: Plan | None = None


def read_checkpoint(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> Checkpoint:
    """Read a .pt, .pth, .th or .safetensors file that may come from anywhere.

    float32 tensors of zip and safetensors files stay on disk, mapped copy-on-write, until they are used; so the file
    must not be overwritten in place while they live. Others take memory: at most four bytes a stored value, and a
    legacy file is read as a whole. Of a YOLOv5 checkpoint, the averaged model (`ema`) is read where there is one;
    its optimizer and the other model stay on disk.

    Args:
        path: The file. Its format is told by its content.
        max_bytes: Limit on the file's size.

    Raises:
        CheckpointError: It is missing, not a checkpoint, damaged, or holds no state dict.
        UnsafeCheckpointError: It names code, or is built to exhaust the machine.
        TooLargeError: It is over `max_bytes`, or has too many tensors.
        NonFiniteError: A tensor holds NaN or infinity.
        ArchitectureError: It is a YOLOv5 whose yaml describes no network that edged knows, or another one.
        AccessError: It may not be read.
    """
    try:
        with _opened(path, max_bytes) as descriptor, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            # By descriptor: the libraries read the very file that was checked, whatever its name is by then.
            contents = read_contents(data, f"/proc/self/fd/{descriptor}", YOLOV5)
            state, plan = _read(contents.tree)
            tensors = _checked_tensors(state, len(data))
            return Checkpoint(_as_float32(tensors), _sha256(data), len(data), contents.format, plan)
    except (CheckpointError, ArchitectureError) as error:
        raise type(error)(f"{path.name if path.name.isprintable() else ascii(path.name)}: {error}") from None


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
            raise CheckpointError("it is not a regular file")
        if status.st_size == 0:
            raise CheckpointError("the file is empty; copy it again")
        if status.st_size > max_bytes:
            raise TooLargeError(f"the file has {status.st_size} bytes, the limit is {max_bytes}")
        yield descriptor
    finally:
        os.close(descriptor)


def _read(tree: Any) -> tuple[Mapping[Any, Any], Plan | None]:
    model = pickled_model(tree)
    return (strip_prefixes(find_state(tree)), None) if model is None else read_model(model)


def find_state(tree: Any) -> dict[Any, Any]:
    """The state dict inside what was saved: bare, or under one of `WRAPPER_KEYS`, perhaps nested.

    Raises:
        CheckpointError: There is none.
    """
    for _ in range(MAX_WRAPPERS):
        if not isinstance(tree, dict):
            break
        inner = next((tree[key] for key in WRAPPER_KEYS if isinstance(tree.get(key), dict)), None)
        if inner is None:
            break
        tree = inner
    if not isinstance(tree, dict):
        raise CheckpointError(f"it holds a {_kind(tree)}, not a dict of tensors; save model.state_dict()")
    if not any(isinstance(value, Tensor) for value in tree.values()):
        found = ", ".join(quoted(key, 40) for key in list(tree)[:5]) or "nothing"
        raise CheckpointError(f"no state dict in it, neither bare nor under {' or '.join(WRAPPER_KEYS)}; found {found}")
    return tree


def strip_prefixes(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """`state` without the prefixes that wrappers put before every name."""
    stripped = dict(state)
    for _ in range(MAX_WRAPPERS):
        for prefix in PREFIXES:
            if all(isinstance(name, str) and name.startswith(prefix) for name in stripped):
                stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
    return stripped


def _kind(value: object) -> str:
    return value.name if isinstance(value, Stub) else "tensor" if isinstance(value, Tensor) else type(value).__name__


def _checked_tensors(state: Mapping[Any, Any], file_bytes: int) -> dict[str, Tensor]:
    """`state`, after checking that it holds named tensors only and is no larger than the file."""
    if len(state) > MAX_TENSORS:
        raise TooLargeError(f"the state dict has {len(state)} entries, the limit is {MAX_TENSORS}")
    for name, value in state.items():
        if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH:
            raise CheckpointError(f"{quoted(name)} is no name of a tensor")
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"entry {quoted(name)} of the state dict is a {_kind(value)}, not a tensor; remove it"
            )
        _check_tensor(name, value)
    # Each is no larger than its storage, so the sum tells how much they share.
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


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
        state[name] = tensor.clone() if shared else tensor
    return state
