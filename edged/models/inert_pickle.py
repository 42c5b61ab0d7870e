"""Read a pickle as inert data: no class, function or module that it names is ever imported.

The standard library's unpickler does the reading. Whatever the pickle names becomes a subclass of `Inert` with that
name: calling it, building it or setting its state keeps what the file says and does nothing. Plain containers of the
standard library become plain containers. A tensor becomes a `StoredTensor`, which says where its values are in the
file, after a check that they are inside their storage. So an optimizer, a scheduler or a config object next to the
weights costs its place in the pickle and nothing else.

`edged.models.pickle_scan` checks the pickle first: it bounds its size and rejects names of functions that run code.
Those would not run here either; a file that names them is rejected because it was built to harm.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edged.errors import CheckpointError
from edged.models.pickle_scan import quoted

STORAGES: Mapping[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
DTYPES = frozenset(STORAGES.values())


class _Fixed:
    """Base of objects that the file must not change once they are checked."""

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class Storage(_Fixed):
    """The stored values that tensors are views of.

    Attributes:
        key: Name of the storage in the file.
        dtype: Type of its values; None where edged does not know the type.
        numel: Number of values.
        kind: Dotted name of its class.
    """

    key: str
    dtype: torch.dtype | None
    numel: int
    kind: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * (0 if self.dtype is None else self.dtype.itemsize)


@dataclass(frozen=True)
class StoredTensor(_Fixed):
    """A tensor as the file describes it.

    Attributes:
        storage: Storage that the tensor is a view of.
        offset: Position of the first value in the storage, in values.
        shape: Sizes of its dimensions.
        strides: Steps of its dimensions, in values.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class Inert:
    """A stand-in for an object that edged never builds; its subclasses stand for names that edged never imports.

    Attributes:
        name: Dotted name in the file; an attribute of the class.
        arguments: Arguments of the call that the file asks for.
        state: State that the file would set on the object; None if it sets none.
        items: Items that the file would append to the object.
        entries: Entries that the file would set by key.
    """

    # No __dict__: the file must not give an object attributes that mean something to Python.
    __slots__ = ("arguments", "entries", "items", "state")
    name: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    entries: list[tuple[Any, Any]]
    items: list[Any]
    state: Any

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        """Return the stand-in for the call: a plain container, a stored tensor, or an inert object."""
        make = _MADE.get(cls.name)
        if make is not None:
            return make(*arguments)
        made = super().__new__(cls)
        made.arguments, made.state, made.items, made.entries = arguments, None, [], []
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Keep an item."""
        self.items.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        """Keep items."""
        self.items.extend(items)

    def add(self, item: Any) -> None:
        """Keep an item."""
        self.items.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))


class PlainDict(dict[Any, Any]):
    """A dict of the standard library. Its factory and attributes, such as `_metadata` of a state dict, are dropped."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass


class FilledDict(PlainDict):
    """A dict that may be made of pairs; `pickle_scan` has checked that the pairs are written out on the spot."""

    __slots__ = ()

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        if arguments and isinstance(arguments[0], dict | list):
            self.update(arguments[0])


def read_pickle(data: bytes, start: int = 0) -> tuple[Any, Mapping[str, Storage], int]:
    """Read one pickle that `pickle_scan.scan_pickle` has passed.

    Args:
        data: Bytes that hold the pickle.
        start: Position of its first byte.

    Returns:
        The inert tree, its storages by key, and the position where the pickle ends.

    Raises:
        CheckpointError: The pickle is malformed, or a tensor is not inside its storage.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    reader = _Reader(stream)
    try:
        return reader.load(), reader.storages, stream.tell()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can fail in any of its steps, in any way
        raise CheckpointError(f"its pickle is damaged ({type(error).__name__}); copy or save it again") from None


class _Reader(pickle.Unpickler):
    """An unpickler of the standard library that finds only inert classes."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin1")  # of strings that Python 2 wrote
        self._names: dict[str, type] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the inert class of a name; nothing is imported."""
        dotted = f"{module}.{name}"
        if dotted not in self._names:
            made = _DICTS.get(dotted) or type("Inert", (Inert,), {"name": dotted, "__slots__": ()})
            self._names[dotted] = made
        return self._names[dotted]

    def persistent_load(self, identity: Any) -> Any:
        """Return the storage that a tensor refers to: ("storage", class, key, device, numel[, view]).

        Before torch 1.6 the class of a module was written in the same way, with its source: ("module", class, ...).
        """
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise CheckpointError("its pickle refers to a storage in a way that torch.save does not write")
        _, kind, key, _, numel, *view = identity
        name = kind.name if isinstance(kind, type) and issubclass(kind, Inert) else type(kind).__name__
        numbered = isinstance(key, str) and key.isascii() and key.isdigit()
        if not numbered or type(numel) is not int or numel < 0 or view not in ([], [None]) or "Storage" not in name:
            raise CheckpointError(f"its pickle describes a storage that cannot be ({quoted(name)}, key {quoted(key)})")
        storage = Storage(key, STORAGES.get(name), numel, name)
        if self.storages.setdefault(key, storage) != storage:
            raise CheckpointError(f"storage {quoted(key)} is described in two different ways")
        return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    """Return what `torch._utils._rebuild_tensor_v2` would build."""
    if not isinstance(storage, Storage) or not _whole(offset) or not _wholes(shape) or not _wholes(strides):
        raise CheckpointError("its pickle describes a tensor in a way that torch.save does not write")
    if len(shape) != len(strides):
        raise CheckpointError(f"a tensor of storage {quoted(storage.key)} has an impossible shape or stride")
    reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    if 0 not in shape and reach > storage.numel:
        raise CheckpointError(
            f"a tensor reaches value {quoted(reach)} of storage {quoted(storage.key)}, which has {storage.numel}"
        )
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _wholes(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) <= 64 and all(map(_whole, value))


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, StoredTensor):
        raise CheckpointError("its pickle describes a parameter in a way that torch.save does not write")
    return data


def _rebuilt(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """Return a tensor that had attributes of its own; a tensor subclass becomes an `UnknownTensor`."""
    name = getattr(kind, "name", "")
    if not (isinstance(function, type) and issubclass(function, Inert) and isinstance(arguments, tuple)):
        raise CheckpointError("its pickle describes a tensor in a way that torch.save does not write")
    if name not in ("torch.nn.parameter.Parameter", "torch.Tensor", "torch.nn.parameter.Buffer"):
        return UnknownTensor(name or "a tensor of an unknown kind")
    return function(*arguments)


@dataclass(frozen=True)
class UnknownTensor(_Fixed):
    """A tensor of a kind that edged does not read, such as a sparse, quantized or distributed one.

    Attributes:
        kind: Dotted name of the function that would build it.
    """

    kind: str


def _unknown(kind: str) -> Callable[..., UnknownTensor]:
    return lambda *_: UnknownTensor(kind)


def _encoded(text: Any = "", encoding: Any = "latin1") -> Any:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("its pickle holds bytes in an unknown encoding")
    return text.encode("latin1")


def _member(kind: Any, name: Any) -> Any:
    """Return a member of an enum, as if it were written by its value, which is not in the file."""
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise CheckpointError("its pickle looks a name up in a way that torch.save does not write")
    return kind(name)


def _set(items: Any = ()) -> Any:
    """Return the strings and numbers of a set; nothing else can be the name of a buffer."""
    return (
        {item for item in items if isinstance(item, str | int | float)} if isinstance(items, Sequence | set) else set()
    )


_DICTS: Mapping[str, type] = {
    **dict.fromkeys(("collections.OrderedDict", "collections.Counter"), FilledDict),
    **dict.fromkeys(("collections.defaultdict", "builtins.dict", "__builtin__.dict"), PlainDict),
}
_MADE: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuilt,
    **{
        f"torch._utils.{name}": _unknown(f"torch._utils.{name}")
        for name in (
            "_rebuild_qtensor",
            "_rebuild_sparse_tensor",
            "_rebuild_wrapper_subclass",
            "_rebuild_meta_tensor_no_storage",
        )
    },
    "torch.Size": lambda sizes=(): tuple(sizes) if isinstance(sizes, tuple | list) else (),
    "_codecs.encode": _encoded,
    **dict.fromkeys(("builtins.getattr", "__builtin__.getattr"), _member),
    **dict.fromkeys(("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"), _set),
}
