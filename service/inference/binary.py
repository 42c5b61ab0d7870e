"""The binary tensor data extension of the Open Inference Protocol: tensors as bytes behind the JSON of a body.

    JSON       as long as the HTTP header Inference-Header-Content-Length says
    tensors    one after another in the order of the JSON, each as long as its parameter binary_data_size says

Numbers are little-endian and in row-major order. An element of a BYTES tensor is its length, 4 bytes little-endian, and
then that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# The protocol's name -> how a value lies in the body. Inputs come as these, and outputs go as these.
NUMBERS: Mapping[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
}
_LENGTH = struct.Struct("<I")


class RequestError(Exception):
    """The request is at fault; the message goes into the body of a 400."""


class Body(NamedTuple):
    """The body of an HTTP message.

    Attributes:
        content: JSON, perhaps with tensors behind it.
        json_bytes: Length of the JSON, for Inference-Header-Content-Length; None where it is the whole content.
    """

    content: bytes | memoryview
    json_bytes: int | None = None

    def split(self) -> tuple[bytes, memoryview]:
        """The JSON, and without a copy what lies behind it.

        Raises:
            RequestError: The JSON would be longer than the body.
        """
        size = len(self.content)
        length = size if self.json_bytes is None else self.json_bytes
        if not 0 <= length <= size:
            raise RequestError(f"Inference-Header-Content-Length is {length}, but the body has {size} bytes")
        return bytes(self.content[:length]), memoryview(self.content)[length:]


def bodies_of(header: Mapping[str, Any], content: bytes | memoryview) -> tuple[Body, Body | None]:
    """The request in a frame of the supervisor, and what another generation answered to it, if that is to be compared.

    Args:
        header: Of the frame, see `Channel.request`.
        content: What lies behind it.
    """
    rival = header.get("rival")
    if rival is None:
        return Body(content, header["json_bytes"]), None
    size = rival["request_bytes"]
    return Body(content[:size], header["json_bytes"]), Body(content[size:], rival["json_bytes"])


def tensor_data(parameters: Mapping[str, Any], behind: memoryview) -> memoryview | None:
    """The bytes of a request's only input; None if it has its data in the JSON.

    Args:
        parameters: Of the input.
        behind: Everything that lies behind the JSON.

    Raises:
        RequestError: There are more bytes or fewer than the parameters say.
    """
    size = parameters.get("binary_data_size")
    if size is None and not behind:
        return None
    if type(size) is not int or size != len(behind):
        raise RequestError(
            f"binary_data_size of the input has value {size!r:.80}, but {len(behind)} bytes follow the JSON; give the"
            " length of the JSON in the header Inference-Header-Content-Length and that of the tensor here"
        )
    return behind


def unpack_numbers(data: memoryview, datatype: str, count: int) -> npt.NDArray[Any]:
    """The values of a tensor, without a copy.

    Args:
        data: Its bytes.
        datatype: One of `NUMBERS`.
        count: Of values.

    Returns:
        Of shape [count]; not to be written to.

    Raises:
        RequestError: The bytes are not as many as the values take.
    """
    dtype = NUMBERS[datatype]
    if len(data) != count * dtype.itemsize:
        wanted = count * dtype.itemsize
        raise RequestError(f"binary data of {len(data)} bytes; {count} values of {datatype} take {wanted}")
    return np.frombuffer(data, dtype)


def unpack_elements(data: memoryview, count: int) -> list[memoryview]:
    """The elements of a BYTES tensor, without a copy.

    Args:
        data: Its bytes.
        count: Of elements.

    Raises:
        RequestError: An element ends behind the data, or something is left over.
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


def pack_numbers(values: npt.ArrayLike, datatype: str) -> bytes:
    """The bytes of values of any shape, as one of `NUMBERS`."""
    return np.asarray(values, NUMBERS[datatype]).tobytes()


def pack_elements(elements: Sequence[bytes]) -> bytes:
    """The bytes of a BYTES tensor."""
    return b"".join(piece for element in elements for piece in (_LENGTH.pack(len(element)), element))
