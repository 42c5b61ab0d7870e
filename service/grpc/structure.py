"""How many fields a message has, counted without parsing it: each takes the parser memory, and the daemon time."""

from __future__ import annotations

from collections.abc import Mapping

MOST_FIELDS = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MOST_DIGITS = 10  # bytes of a varint
# Field number -> those of the messages in it, of a ModelInferRequest: parameters (entries of name and value), inputs
# with parameters and contents, outputs with parameters.
_ENTRY: Mapping[int, Mapping] = {2: {}}  # type: ignore[type-arg]  # nested
REQUEST: Mapping[int, Mapping] = {4: _ENTRY, 5: {4: _ENTRY, 5: {}}, 6: {2: _ENTRY}}  # type: ignore[type-arg]  # nested


def has_too_many_fields(raw: bytes, most: int = MOST_FIELDS) -> bool:
    """Return whether a ModelInferRequest, and the messages in it, have more than `most` fields.

    Values that are packed, as protobuf 3 has them, are one field. Counting ends at what is no message, where parsing
    ends, too.
    """
    return _left(memoryview(raw), REQUEST, most) < 0


def _left(data: memoryview, nested: Mapping, most: int) -> int:  # type: ignore[type-arg]  # nested
    """Return how many of `most` fields are left after a message; less than 0 if it has more."""
    at, end = 0, len(data)
    while at < end and most >= 0:
        most -= 1
        tag, at = _varint(data, at)
        if tag < 8:  # field 0 is none
            break
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            size, at = _varint(data, at)
            if (inner := nested.get(tag >> 3)) is not None:
                most = _left(data[at : at + size], inner, most)
            at += size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            break
    return most


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for shift in range(0, 7 * _MOST_DIGITS, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at
