"""Look at a pickle before torch reads it: names, opcodes, counts and sizes. Nothing is built.

torch.load(weights_only=True) runs nothing that is off its list, but it allocates and copies whatever a file asks for
(CVE-2026-24747 and the bombs below). So a pickle passes only if it is spelled the way torch.save spells one. The scan
turns it into one symbol an instruction, so that this spelling is a pattern, and keeps no stack.
"""

from __future__ import annotations

import math
import pickletools
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import IO, Any

from edged.errors import CheckpointError, TooLargeError, UnsafeCheckpointError
from edged.models.allowlist import BUILT_BY_TORCH, STORAGES, STUBBED, YOLOV5

# A ResNet-152 takes 0.15 MB and 30,000 steps, a YOLOv5x 100,000; with an optimizer's state about three times that.
MAX_PICKLE_BYTES = 16 << 20
MAX_PICKLE_STEPS = 1_000_000
MAX_PATHS = 1 << 14  # to one object, over all others that share it
MAX_TUPLES = 20_000  # beside those of tensors; as a dict's key, 150,000 in each other overflow the stack of the hash

# All that torch.save writes, besides the memo's instructions. An object from the memo is "o", a text from it "m".
_SYMBOLS: Mapping[str, str] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), "i"),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), "x"),
    **dict.fromkeys(("BINFLOAT", "NEWTRUE", "NEWFALSE"), "v"),
    **dict(zip(("PROTO", "STOP", "MARK", "NONE", "GLOBAL", "BINPERSID"), "^.(ncQ", strict=True)),
    **dict(zip(("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"), "[ae{su", strict=True)),
    **dict(zip(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"), ")123t", strict=True)),
    **dict(zip(("REDUCE", "NEWOBJ", "BUILD"), "RNb", strict=True)),
}
_KEPT = {"x": "m", "m": "m", "c": "c"}
_INTEGERS = r"(\)|i1|ii2|iii3|\(i+t)"
# ("storage", type, key, device, numel[, None]) as a storage, then the tensor's offset, shape and strides.
_TENSOR = re.compile(rf"\([xm]c[xm][xm]in?tQi{_INTEGERS}{_INTEGERS}")
_KEY_LIST = re.compile(r"\^\[(\(x+e|xa)*\.")
# Calls that copy their argument: it must be written out on the spot, so that all copies are as long as the pickle.
_FIRST_ARGUMENT: Mapping[str, str] = {
    "collections.OrderedDict": ")[",
    "collections.Counter": "{",
    "builtins.set": "[",
    "__builtin__.set": "[",
    "_codecs.encode": "x",
    "torch.Size": ")i",
}
# The state of an object is a dict, or a tuple that ends in an integer (numpy.dtype) or in bytes (numpy.ndarray): torch
# gives a tensor any other.
_ODD_STATE = re.compile(r"(?<![{su])(?<!it)b")
_BYTES_STATE = re.compile(r"(c)[xm][xm]2Rtb")
# What a path of shared objects goes no further than: the hash of a made object follows nothing inside it, and a tuple
# of numbers holds nothing to follow. Training shares one activation among 170 modules, and between the model and its
# averaged copy the sizes of every kernel.
_ENDS_A_PATH = re.compile(r"([RN]|[iv]1|[iv]{2}2|[iv]{3}3|\([iv]{4}t)$")
# Names that say what a file is instead. The first start that fits counts.
_YOLOV5_ONLY = "edged reads detectors of YOLOv5 v6.0 to v7.0"
_KNOWN_REFUSALS: Mapping[str, str] = {
    "models.yolo.Segment": f"it is a YOLOv5 segmentation model; {_YOLOV5_ONLY}",
    "models.yolo.Classif": f"it is a YOLOv5 classification model; {_YOLOV5_ONLY}",
    "models.common.Classify": f"it is a YOLOv5 classification model; {_YOLOV5_ONLY}",
    "ultralytics.": f"it is a YOLOv8 or later model; {_YOLOV5_ONLY}",
    **dict.fromkeys(
        ("models.common.", "models.experimental.", "models.yolo."),
        f"it holds a block that edged does not know; {_YOLOV5_ONLY} with their published blocks",
    ),
    "torch.nn.modules.": f"it holds an unknown module; save model.state_dict(), except that {_YOLOV5_ONLY}",
}


@dataclass(frozen=True)
class _Spelling:
    """A pickle without its memo: a symbol and an argument for each instruction."""

    symbols: str
    arguments: list[Any]


def scan_pickle(stream: IO[bytes], extra_names: Collection[str] = ()) -> dict[str, int]:
    """Check one pickle.

    Args:
        stream: Positioned at the pickle, left behind it. The caller bounds it to `MAX_PICKLE_BYTES`.
        extra_names: Dotted names that are allowed besides those of `allowlist`.

    Returns:
        The size in bytes of each storage that its tensors need, by storage key.

    Raises:
        UnsafeCheckpointError: It names a global off the lists, or is not spelled as torch.save spells it.
        TooLargeError: It takes more than `MAX_PICKLE_STEPS` or has more than `MAX_TUPLES`.
        CheckpointError: It is malformed or cut off, or a tensor does not lie inside its storage.
    """
    spelling = _spell(stream, extra_names)
    _check_calls(spelling)
    if len(re.findall(r"[123t](?![RQ])", _TENSOR.sub("", spelling.symbols))) > MAX_TUPLES:
        raise TooLargeError(f"its pickle has over {MAX_TUPLES} tuples; save only model.state_dict()")
    storages: dict[str, tuple[str, int]] = {}
    tensors = list(_TENSOR.finditer(spelling.symbols))
    if len(tensors) != spelling.symbols.count("Q"):
        raise UnsafeCheckpointError("its pickle refers to a storage in a way that torch.save does not write")
    for match in tensors:
        _, kind, key, _, numel = spelling.arguments[match.start() + 1 : match.start() + 6]
        if kind not in STORAGES or not (key.isascii() and key.isdigit()) or numel < 0:
            raise CheckpointError(f"its pickle describes a storage that cannot be ({quoted(kind)}, key {quoted(key)})")
        if storages.setdefault(key, (kind, numel)) != (kind, numel):
            raise CheckpointError(f"storage {quoted(key)} is described in two different ways")
        offset = spelling.arguments[match.start(1) - 1]
        shape, strides = ([n for n in spelling.arguments[slice(*match.span(i))] if n is not None] for i in (1, 2))
        _check_inside(key, numel, offset, shape, strides)
    return {key: numel * STORAGES[kind].itemsize for key, (kind, numel) in storages.items()}


def scan_key_list(stream: IO[bytes]) -> list[str]:
    """The texts of a pickle that is a list of texts and nothing else.

    Raises:
        CheckpointError: It is anything else, or as `scan_pickle`.
    """
    spelling = _spell(stream, ())
    if not _KEY_LIST.fullmatch(spelling.symbols):
        raise CheckpointError("its list of storages is damaged; save it again with a current torch")
    return [text for text in spelling.arguments if isinstance(text, str)]


def quoted(text: object, limit: int = 80) -> str:
    """`text` on one line, in quotes, cut to `limit` characters; safe for logs whatever the file put there."""
    # A container is named only: a small pickle can hold a list whose text is of astronomical length.
    whole = str(text) if isinstance(text, str | int | Exception) else f"a {type(text).__name__}"
    return ascii(whole if len(whole) <= limit else whole[: limit - 3] + "...")


def _spell(stream: IO[bytes], extra_names: Collection[str]) -> _Spelling:
    symbols: list[str] = []
    arguments: list[Any] = []
    memo: dict[Any, tuple[str, Any]] = {}
    shared: Counter[Any] = Counter()
    ends: set[Any] = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pickletools: backslashes in a damaged name
            for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if step >= MAX_PICKLE_STEPS:
                    raise TooLargeError(f"its pickle takes over {MAX_PICKLE_STEPS} steps; save only model.state_dict()")
                if opcode.name in ("BINPUT", "LONG_BINPUT"):
                    if argument in memo or symbols[-1] == "Q":
                        raise UnsafeCheckpointError("its pickle uses the memo in a way that torch.save does not")
                    memo[argument] = _KEPT.get(symbols[-1], "o"), arguments[-1]
                    if _ENDS_A_PATH.search("".join(symbols[-6:])):
                        ends.add(argument)
                    continue
                if opcode.name in ("BINGET", "LONG_BINGET"):
                    symbol, value = memo[argument]
                    shared[argument] += symbol == "o"
                else:
                    symbol, value = _checked(opcode.name, argument, extra_names)
                symbols.append(symbol)
                arguments.append(value)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"its pickle is damaged or cut off ({quoted(error)})") from None
    paths = [math.log2(1 + count) for key, count in shared.items() if key not in ends]
    if sum(paths) > math.log2(MAX_PATHS):
        raise UnsafeCheckpointError("its pickle nests shared objects, which grow without bound; save only the tensors")
    return _Spelling("".join(symbols), arguments)


def _checked(opcode: str, argument: Any, extra_names: Collection[str]) -> tuple[str, Any]:
    """Symbol and argument of an instruction, after checking that it may occur."""
    if opcode == "PROTO" and argument != 2:
        raise CheckpointError(f"it is in pickle protocol {argument}; save it with torch.save's own, which is 2")
    if opcode not in _SYMBOLS:
        raise UnsafeCheckpointError(f"its pickle uses {opcode}, which torch.save never writes")
    if opcode == "GLOBAL":
        argument = argument.replace(" ", ".", 1)
        if argument not in BUILT_BY_TORCH and argument not in STUBBED and argument not in extra_names:
            raise UnsafeCheckpointError(_refusal(argument))
    return _SYMBOLS[opcode], argument


def _refusal(name: str) -> str:
    if name in YOLOV5:  # allowed in a zip: this is the format before
        return (
            f"it is a YOLOv5 model (it names {quoted(name)}) in the format before torch 1.6; load and save it once with"
            " the YOLOv5 that wrote it and a current torch"
        )
    for start, reason in _KNOWN_REFUSALS.items():
        if name.startswith(start):
            return f"{reason} (it names {quoted(name)})"
    return f"it names {quoted(name)}, which tensors do not need and edged never loads; save model.state_dict() instead"


def _check_calls(spelling: _Spelling) -> None:
    plain = _BYTES_STATE.sub(lambda match: _plain_state(match, spelling.arguments), spelling.symbols)
    if _ODD_STATE.search(plain):
        raise UnsafeCheckpointError("its pickle sets an object's state in a way that torch.save does not write")
    for match in re.finditer(r"c(?=\(*([^(]))", spelling.symbols):
        name, first = spelling.arguments[match.start()], match[1]
        if first not in _FIRST_ARGUMENT.get(name, first) + "123t":  # 123t: in a tuple, it can only be passed on
            raise UnsafeCheckpointError(f"its pickle calls {quoted(name)} in a way that torch.save does not write")
        if name == "_codecs.encode" and spelling.arguments[match.end() + 1] != "latin1":
            raise UnsafeCheckpointError("its pickle holds bytes in an unknown encoding")


def _plain_state(match: re.Match[str], arguments: list[Any]) -> str:
    """A state that ends in bytes as one that passes; any other call's result as it is."""
    return "itb" if arguments[match.start(1)] == "_codecs.encode" else match[0]


def _check_inside(key: str, numel: int, offset: int, shape: list[int], strides: list[int]) -> None:
    """A tensor that reaches beyond its storage would make torch grow the storage to any size."""
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
        raise CheckpointError(f"a tensor of storage {quoted(key)} has an impossible shape or stride")
    reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    if 0 not in shape and reach > numel:
        raise CheckpointError(f"a tensor reaches value {reach} of storage {quoted(key)}, which has {numel}")
