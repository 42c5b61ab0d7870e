"""Typed contents: the values of a tensor in the fields of InferTensorContents, to bytes and back."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from service.ipc.elements import pack_elements, unpack_elements
from service.ipc.messages import RequestError

BYTES = "BYTES"
_BYTES_FIELD = "bytes_contents"
# Datatype -> the field that carries its values, and the code of the array module for one of them as bytes.
_FIELDS: Mapping[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "B"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}


def pack_contents(name: str, datatype: str, contents: Any) -> bytes:
    """Return the values of an input as bytes of the binary tensor data extension.

    Args:
        name: Name of the input.
        datatype: Datatype of the input.
        contents: Its InferTensorContents, which are not empty.

    Raises:
        RequestError: The values are in the field of another datatype, or one of them is out of range.
    """
    field = field_of(datatype)
    if field is None:
        raise RequestError(f"input {name!r:.80} has contents of datatype {datatype!r:.80}; send raw_input_contents")
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if filled != [field]:
        raise RequestError(f"input {name!r:.80} of datatype {datatype} has {' and '.join(filled)}; send {field}")
    values = getattr(contents, field)
    if datatype == BYTES:
        return pack_elements(values)
    try:
        return array(_FIELDS[datatype][1], values).tobytes()
    except OverflowError as error:
        raise RequestError(f"input {name!r:.80} has a value that is no {datatype}: {error}") from None


def fill_contents(contents: Any, datatype: str, count: int, data: memoryview) -> None:
    """Set the values of an output from bytes of the binary tensor data extension.

    Args:
        contents: Empty InferTensorContents.
        datatype: Datatype of the output, which has a field.
        count: Number of values.
        data: Their bytes.
    """
    if datatype == BYTES:
        contents.bytes_contents.extend(map(bytes, unpack_elements(data, count)))
        return
    field, code = _FIELDS[datatype]
    getattr(contents, field).extend(array(code, bytes(data)))


def field_of(datatype: str) -> str | None:
    """Return the name of the field that carries values of a datatype; None if only raw bytes can."""
    return _BYTES_FIELD if datatype == BYTES else _FIELDS.get(datatype, (None,))[0]
