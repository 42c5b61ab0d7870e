"""An untrusted file becomes a state dict of float32 tensors. No code of the file runs; see pickle_reader."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edged.errors import AccessError, CheckpointError, NonFiniteError, TooLargeError, UnsafeCheckpointError
from edged.models.containers import Contents, read_contents
from edged.models.pickle_reader import Node
from edged.models.refs import TensorRef, quoted

MAX_FILE_BYTES = 2 << 30
MAX_TENSORS = 20_000
MAX_NAME_LENGTH = 512
MAX_WRAPPERS = 4  # {"model": {"state_dict": {...}}} and the like
WRAPPER_KEYS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
ALIGNMENT = 64  # bytes; torch's own in new files


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that passed every check.

    Attributes:
        state: Tensors by name, wrapper keys and `module.` removed. Floating point ones are float32 and finite.
        sha256: Of the whole file, hex.
        file_bytes: Size of the file.
        format: "torch-zip", "torch-legacy" or "safetensors".
    """

    state: dict[str, Tensor]
    sha256: str
    file_bytes: int
    format: str


def load_checkpoint(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> Checkpoint:
    """Read a .pt, .pth, .th or .safetensors file that may come from anywhere.

    float32 tensors stay on disk, mapped copy-on-write, until they are used; so the file must not be overwritten in
    place while they live. The others take at most four bytes a stored value.

    Args:
        path: The file. Its format is told by its content.
        max_bytes: Limit on the file's size.

    Raises:
        CheckpointError: It is missing, not a checkpoint, damaged, or holds no state dict.
        UnsafeCheckpointError: It names code, or is built to exhaust the machine.
        TooLargeError: It is over `max_bytes`, or has too many tensors.
        NonFiniteError: A tensor holds NaN or infinity.
        AccessError: It may not be read.
    """
    try:
        data = _map_file(path, max_bytes)
        contents = read_contents(data)
        refs = _checked_refs(strip_prefixes(find_state(contents.tree)), len(data))
        state = _materialize(refs, contents, data)
    except CheckpointError as error:
        raise type(error)(f"{path.name if path.name.isprintable() else ascii(path.name)}: {error}") from None
    return Checkpoint(state, hashlib.sha256(data).hexdigest(), len(data), contents.format)


def _map_file(path: Path, max_bytes: int) -> mmap.mmap:
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
        return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)


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
        kind = tree.name if isinstance(tree, Node) else "tensor" if isinstance(tree, TensorRef) else type(tree).__name__
        raise CheckpointError(f"it holds a {kind}, not a dict of tensors; save model.state_dict()")
    if not any(isinstance(value, TensorRef) for value in tree.values()):
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


def _checked_refs(state: Mapping[Any, Any], file_bytes: int) -> dict[str, TensorRef]:
    """`state`, after checking that it holds named tensors only and is no larger than the file."""
    if len(state) > MAX_TENSORS:
        raise TooLargeError(f"the state dict has {len(state)} entries, the limit is {MAX_TENSORS}")
    total = 0
    for name, value in state.items():
        if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH:
            raise CheckpointError(f"{quoted(name)} is no name of a tensor")
        if not isinstance(value, TensorRef):
            kind = value.name if isinstance(value, Node) else type(value).__name__
            raise CheckpointError(f"entry {quoted(name)} of the state dict is a {kind}, not a tensor; remove it")
        if value.numel == 0:
            raise CheckpointError(f"tensor {quoted(name)} has no values (shape {list(value.shape)})")
        total += value.nbytes
    if total > file_bytes:
        raise UnsafeCheckpointError(f"its tensors share storage and claim {total} bytes, the file has {file_bytes}")
    return dict(state)


def _materialize(refs: Mapping[str, TensorRef], contents: Contents, data: mmap.mmap) -> dict[str, Tensor]:
    users = Counter(ref.storage.key for ref in refs.values())
    state = {}
    for name, ref in refs.items():
        tensor = _read_tensor(ref, contents.starts[ref.storage.key], data)
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
            if not np.isfinite(tensor.numpy()).all():  # one thread: waking torch's costs more than small tensors do
                raise NonFiniteError(f"tensor {quoted(name)} holds NaN or infinity; its training diverged")
        # Tensors of one storage get memory of their own: changing one must not change another.
        state[name] = tensor.clone() if users[ref.storage.key] > 1 else tensor
    return state


def _read_tensor(ref: TensorRef, start: int, data: mmap.mmap) -> Tensor:
    """A contiguous tensor of the stored type; a view of the mapped file where alignment allows."""
    storage = memoryview(data)[start : start + ref.storage.nbytes]
    raw = torch.frombuffer(bytearray(storage) if start % ALIGNMENT else storage, dtype=torch.uint8)
    return raw.view(ref.storage.dtype).as_strided(ref.shape, ref.stride, ref.offset).contiguous()
