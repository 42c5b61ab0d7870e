"""The binary tensor data extension of the Open Inference Protocol: tensors as bytes after the JSON of a body.

    JSON       its length is in the HTTP header Inference-Header-Content-Length
    tensors    in the order of the JSON, without gaps; the length of each is in its parameter binary_data_size

Numbers are little-endian and in row-major order. Elements of a BYTES tensor are packed as in service.ipc.elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.ipc.messages import Body, RequestError

# Datatype of the protocol -> layout of a value in the body, for inputs and outputs.
NUMBERS: Mapping[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
}


def bodies_of(header: Mapping[str, Any], content: bytes | memoryview) -> tuple[Body, Body | None]:
    """Split a frame of the supervisor into a request and the reference reply that it is to be compared with.

    Args:
        header: Header of the frame, see `Channel.request`.
        content: Body of the frame.

    Returns:
        The request, and the reply of another generation; None if no comparison is wanted.
    """
    reference = header.get("rival")
    if reference is None:
        return Body(content, header["json_bytes"]), None
    size = reference["request_bytes"]
    return Body(content[:size], header["json_bytes"]), Body(content[size:], reference["json_bytes"])


def tensor_data(parameters: Mapping[str, Any], tail: memoryview) -> memoryview | None:
    """Return the bytes of a request's only input; None if its data is in the JSON.

    Args:
        parameters: Parameters of the input.
        tail: All bytes after the JSON.

    Raises:
        RequestError: The number of bytes is not the `binary_data_size` of the input.
    """
    size = parameters.get("binary_data_size")
    if size is None and not tail:
        return None
    if type(size) is not int or size != len(tail):
        raise RequestError(
            f"binary_data_size of the input has value {size!r:.80}, but {len(tail)} bytes follow the JSON; give the"
            " length of the JSON in the header Inference-Header-Content-Length and that of the tensor here"
        )
    return tail


def unpack_numbers(data: memoryview, datatype: str, count: int) -> npt.NDArray[Any]:
    """Return the values of a tensor as a view of its bytes.

    Args:
        data: Bytes of the tensor.
        datatype: One of `NUMBERS`.
        count: Number of values.

    Returns:
        Values [count]; read-only.

    Raises:
        RequestError: The number of bytes does not match the number of values.
    """
    dtype = NUMBERS[datatype]
    if len(data) != count * dtype.itemsize:
        wanted = count * dtype.itemsize
        raise RequestError(f"binary data of {len(data)} bytes; {count} values of {datatype} take {wanted}")
    return np.frombuffer(data, dtype)


def pack_numbers(values: npt.ArrayLike, datatype: str) -> bytes:
    """Return values of any shape as bytes of a datatype of `NUMBERS`."""
    return np.asarray(values, NUMBERS[datatype]).tobytes()
