"""The sizes that the pickle of a checkpoint states, read opcode by opcode. Nothing is built, and reading is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

_MAX_OPCODES = 500_000
_MAX_BYTES = 16 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_COUNT_BYTES = 8  # before the values of each storage in a legacy file
_ITEM_BYTES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    "ComplexDoubleStorage": 16,
}  # of all others 1: the true size is not less
_MARK = object()
_TO_THE_MARK = frozenset({"APPENDS", "SETITEMS", "ADDITEMS", "LIST", "DICT", "FROZENSET", "OBJ", "INST", "POP_MARK"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class CutOffError(Exception):
    """The file ends in the middle of its pickle."""


class UnknownSizeError(Exception):
    """The pickle is damaged, or too large to be read here."""


def legacy_bytes(file: BinaryIO) -> int:
    """Return the size that a file in the format before torch 1.6 should have, 0 if it is another kind of pickle.

    Five pickles (magic, version, machine, object, storage keys), then count and values of each storage.

    Raises:
        CutOffError: The file ends before its last pickle does.
        UnknownSizeError: It is damaged or too large.
    """
    file.seek(0)
    if _LEGACY_MAGIC not in [argument for _, argument in _opcodes(file)]:
        return 0
    for _ in ("version", "machine"):
        for _ in _opcodes(file):
            pass
    storages = storage_bytes(file)
    for _ in _opcodes(file):
        pass
    return file.tell() + sum(_COUNT_BYTES + size for size in storages.values())


def storage_bytes(file: BinaryIO) -> dict[str, int]:
    """Return the size in bytes of each storage that the pickle at the file's position names, by the storage's key.

    The file is at the end of the pickle afterwards.

    Raises:
        CutOffError: The file ends before the pickle does.
        UnknownSizeError: The pickle is damaged or too large.
    """
    found: dict[str, int] = {}
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for name, argument in _opcodes(file):
        if name == "BINPERSID":
            _note_storage(stack, found)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif name in _TO_THE_MARK:
            _pop_to_mark(stack)
        elif name == "STACK_GLOBAL":
            stack[-2:] = stack[-1:]  # of module and name, the name
        elif name in _GETS:
            stack.append(memo.get(argument))
        elif name in _PUTS or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1] if stack else None
        elif isinstance(argument, (str, int)) or name == "NONE":
            stack.append(argument)
    return found


def _note_storage(stack: list[Any], found: dict[str, int]) -> None:
    """Note the storage of ("storage", its class, key, location, number of values, ...)."""
    reference = stack[-1] if stack else None
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        return
    _, kind, key, _, count = reference[:5]
    if isinstance(kind, str) and isinstance(key, str) and isinstance(count, int):
        found[key] = max(count, 0) * _ITEM_BYTES.get(kind.rpartition(" ")[2], 1)


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while stack and (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _opcodes(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield name and argument of each opcode of the pickle at the file's position."""
    import pickletools  # half a megabyte, which the supervisor needs only for files in these formats

    bounded = _Bounded(file)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):  # type: ignore[arg-type]  # it only reads
            if count >= _MAX_OPCODES:
                raise UnknownSizeError
            yield opcode.name, argument
    except (ValueError, UnicodeError, OverflowError) as error:
        raise (CutOffError if bounded.exhausted else UnknownSizeError) from error


class _Bounded:
    """The part of a file that may be read.

    Attributes:
        exhausted: Whether more was asked for than the file has.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MAX_BYTES
        self.exhausted = False

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise UnknownSizeError
        self._left -= count
        data = self._file.read(count)
        self.exhausted = self.exhausted or len(data) < count
        return data

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        if b"\\" in line:  # an escape in a string of protocol 0, which torch never writes
            raise UnknownSizeError
        self._left -= len(line)
        self.exhausted = self.exhausted or not line.endswith(b"\n")
        return line
