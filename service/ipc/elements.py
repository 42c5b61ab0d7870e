"""The elements of a BYTES tensor in the protocol's binary form. Imports no numpy.

An element is its length, 4 bytes little-endian, followed by that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from service.ipc.messages import RequestError

_LENGTH = struct.Struct("<I")


def pack_elements(elements: Sequence[bytes]) -> bytes:
    """Return elements as the bytes of a BYTES tensor."""
    return b"".join(piece for element in elements for piece in (_LENGTH.pack(len(element)), element))


def unpack_elements(data: memoryview, count: int) -> list[memoryview]:
    """Return the elements of a BYTES tensor as views of its bytes.

    Args:
        data: Bytes of the tensor.
        count: Number of elements.

    Raises:
        RequestError: An element ends after the data, or bytes are left over.
    """
    elements, start = [], 0
    for index in range(count):
        if start + _LENGTH.size > len(data):
            raise RequestError(f"binary data ends before the length of element {index}; shape says {count} elements")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if start + length > len(data):
            left = len(data) - start
            raise RequestError(f"element {index} has a length of {length} bytes, but only {left} follow")
        elements.append(data[start : start + length])
        start += length
    if start != len(data):
        raise RequestError(f"{len(data) - start} bytes follow the last of {count} elements; correct shape or data")
    return elements
