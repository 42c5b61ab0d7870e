"""Read the pickle inside a checkpoint as inert data.

`torch.load(weights_only=True)` is not enough for a file from anywhere: it calls torch's rebuild functions with
arguments of the file's choice, it let code run up to torch 2.5 (CVE-2025-32434, and boards still carry such versions),
and it allocates whatever the file asks for. This reader imports nothing and calls nothing that the file names. A tensor
becomes a `TensorRef`, a description; an object from the list of harmless ones becomes a `Node`; every other name ends
the reading. Work and memory are bounded by the two limits below.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.refs import STORAGE_DTYPES, StorageRef, TensorRef, non_negative, quoted, tensor_ref

# A ResNet-152 takes 0.15 MB and 30,000 steps; with its optimizer's state about three times that.
MAX_PICKLE_BYTES = 16 << 20
MAX_PICKLE_STEPS = 1_000_000
MAX_ARGUMENTS = 8
MAX_KEY_BITS = 63  # longer integers could be chosen to collide in a dict

# What training scripts put beside the weights. None of it is built, only skipped over.
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
_BUILTINS = ("set", "dict", "list", "int", "float", "bool", "bytes")
HARMLESS = frozenset(
    {f"torch.{name}" for name in (*_DTYPES, "device")}
    | {f"{m}.{name}" for m in ("builtins", "__builtin__") for name in _BUILTINS}
    | {f"{m}.multiarray.scalar" for m in ("numpy.core", "numpy._core")}
    | {"numpy.dtype", "_codecs.encode", "argparse.Namespace", "collections.Counter", "collections.defaultdict"}
)


@dataclass(eq=False, slots=True)
class Node:
    """An object that was not built: its class's dotted name, the arguments and the state that the file gives it."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A dotted name that the file mentions."""

    name: str


@dataclass(eq=False)
class _Machine:
    """The pickle machine, reduced to what `torch.save` writes. Methods are named after the opcodes."""

    harmless: frozenset[str]
    steps: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, StorageRef] = field(default_factory=dict)

    def run(self, stream: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            self.spend(1)
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise UnsafeCheckpointError(f"its pickle uses {opcode.name}, which no checkpoint of tensors needs")
        return self.stack.pop()

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_PICKLE_STEPS:
            raise TooLargeError(f"its pickle takes more than {MAX_PICKLE_STEPS} steps; save only model.state_dict()")

    def take_marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def skip(self, _: Any) -> None:
        """Framing carries no data."""

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def marked_tuple(self, _: Any) -> None:
        items = tuple(self.take_marked())
        self.stack.append(items)

    def short_tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:])
        self.stack[-length:] = [items]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Node):  # a Node's elements are of no interest
            raise UnsafeCheckpointError(f"its pickle appends to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Node):
            raise UnsafeCheckpointError(f"its pickle sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(target, dict):
                target[_checked_key(key)] = value

    def named(self, argument: str) -> None:
        name = argument.replace(" ", ".", 1)
        if name not in STORAGE_DTYPES and name not in _CALLS and name not in self.harmless:
            raise UnsafeCheckpointError(_refusal(name))
        self.stack.append(Global(name))

    def stacked_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise UnsafeCheckpointError("its pickle names a global by something else than text")
        self.named(f"{module} {name}")

    def call(self, _: Any) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Global) or not isinstance(arguments, tuple):
            raise UnsafeCheckpointError(f"its pickle calls a {type(target).__name__}")
        rebuild = _CALLS.get(target.name)
        # The cut bounds the copying: a long tuple from the memo could be given again and again.
        self.stack.append(rebuild(self, *arguments[:MAX_ARGUMENTS]) if rebuild else Node(target.name, arguments))

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Node):
            target.state = state
        elif not isinstance(target, dict):  # a state dict's own state is its version metadata
            raise UnsafeCheckpointError(f"its pickle sets the state of a {type(target).__name__}")

    def storage(self, _: Any) -> None:
        match self.stack.pop():
            case ("storage", Global(name=name), str(key), _, numel) if name in STORAGE_DTYPES:
                pass
            case ("storage", Global(name=name), str(key), _, numel, None) if name in STORAGE_DTYPES:
                pass  # the form before torch 1.6; its last entry would make it a view of another storage
            case _:
                raise CheckpointError("its pickle refers to a storage in an unknown way; save it with a current torch")
        ref = StorageRef(key, STORAGE_DTYPES[name], *non_negative([numel]))
        known = self.storages.setdefault(key, ref)
        if (known.dtype, known.numel) != (ref.dtype, ref.numel):
            raise CheckpointError(f"storage {quoted(key)} is described in two different ways")
        self.stack.append(known)

    def ordered_dict(self, pairs: Any = (), *_: Any) -> dict[Any, Any]:
        self.spend(len(pairs))  # a long list from the memo could be given again and again
        return {_checked_key(key): value for key, value in pairs}

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
        if not isinstance(storage, StorageRef):
            raise CheckpointError("its pickle builds a tensor from something else than a storage")
        return tensor_ref(storage, offset, shape, stride)

    def same(self, value: Any, *_: Any) -> Any:
        return value


def _checked_key(key: Any) -> str | int:
    if isinstance(key, str) or (type(key) is int and key.bit_length() <= MAX_KEY_BITS):
        return key
    raise UnsafeCheckpointError(f"a dict has a key of type {type(key).__name__}; only text and integers are accepted")


def _refusal(name: str) -> str:
    if name.startswith(("models.yolo.", "models.common.")):
        return (
            f"it is a pickled YOLOv5 model (it names {quoted(name)}), which is not supported; use a ResNet's state dict"
        )
    return f"it names {quoted(name)}, which tensors do not need and edged never loads; save model.state_dict() instead"


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Node("builtins.set"),
}
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
    | {"BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.skip,
    "FRAME": _Machine.skip,
    "STOP": _Machine.skip,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.marked_tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.take_marked()),
    "ADDITEMS": lambda machine, _: machine.append(machine.take_marked()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_marked()),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Machine.ordered_dict,
    "torch._utils._rebuild_tensor": _Machine.tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch._utils._rebuild_parameter": _Machine.same,
    "torch.Size": _Machine.same,
}


def read_pickle(stream: IO[bytes], harmless: frozenset[str] = HARMLESS) -> tuple[Any, dict[str, StorageRef]]:
    """Read one pickle without building anything that it names.

    Args:
        stream: Positioned at the pickle, left behind it. The caller bounds it to `MAX_PICKLE_BYTES`.
        harmless: Dotted names that become `Node`s; a name on no list ends the reading.

    Returns:
        Dicts, lists, tuples, numbers and text with `TensorRef` and `Node` leaves; and the storages by key.

    Raises:
        UnsafeCheckpointError: It names a global off the lists, or uses an opcode that `torch.save` does not write.
        TooLargeError: It takes more than `MAX_PICKLE_STEPS`.
        CheckpointError: It is malformed or cut off.
    """
    machine = _Machine(harmless)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pickletools: backslashes in a damaged name
            return machine.run(stream), machine.storages
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"its pickle is damaged or cut off ({quoted(error)})") from None
