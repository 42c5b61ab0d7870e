"""Translation of a ModelInferRequest to what a generation reads: JSON, and the bytes of its tensors unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from service.grpc.contents import pack_contents
from service.grpc.messages import ModelInferRequest, RawTensor
from service.grpc.structure import MOST_FIELDS, has_too_many_fields
from service.ipc.messages import RequestError

_FEW_BYTES = 16 << 10  # of which no message is expensive
MOST_STRUCTURE = 5 << 20  # bytes; an image of 640 pixels in typed contents is smaller
# Parameters of the binary tensor data extension, which gRPC has no use for: its tensors are bytes or typed contents.
_BINARY_SIZE, _BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_SHARED_MEMORY = "shared_memory_region"


class Parts(NamedTuple):
    """A request as a generation reads it.

    Attributes:
        header: JSON.
        tensors: Bytes that follow it.
        typed: Whether the values came in typed contents, so those of the response go there, too.
    """

    header: bytes
    tensors: list[bytes]
    typed: bool

    @property
    def size(self) -> int:
        """Length of the whole in bytes."""
        return len(self.header) + sum(map(len, self.tensors))

    def join(self) -> bytes:
        """Return the whole in one piece."""
        return b"".join((self.header, *self.tensors))

    def write_to(self, memory: memoryview) -> None:
        """Write the whole to memory of its size."""
        start = 0
        for piece in (self.header, *self.tensors):
            memory[start : start + len(piece)] = piece
            start += len(piece)


def parse_message(raw: bytes) -> Any:
    """Return a ModelInferRequest from its bytes.

    Parsed messages of many small fields take up to 40 times their bytes, and values in typed contents are converted one
    by one. So all but a raw tensor is limited, and so is the number of fields.

    Raises:
        RequestError: The bytes are no such message, or too many of them are not one raw tensor, or there are too many
            fields.
    """
    if len(raw) > _FEW_BYTES and has_too_many_fields(raw):
        raise RequestError(
            f"the message has more than {MOST_FIELDS} fields; send fewer parameters, and values packed or as the one"
            " entry of raw_input_contents"
        )
    try:
        if len(raw) > MOST_STRUCTURE:
            others = len(raw) - len(RawTensor.FromString(raw).raw_input_contents)
            if others > MOST_STRUCTURE:
                raise RequestError(
                    f"{others} bytes of the message are not a raw tensor, at most {MOST_STRUCTURE} may be; send the"
                    " values as the one entry of raw_input_contents"
                )
        return ModelInferRequest.FromString(raw)
    except DecodeError:
        raise RequestError("the message is no ModelInferRequest; send one of the Open Inference Protocol") from None


def parts_of(message: Any) -> Parts:
    """Translate a request; its outputs are requested as bytes.

    Args:
        message: A ModelInferRequest. Not modified.

    Raises:
        RequestError: The values of an input are missing, given twice, or not of its datatype.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs; send one for each input"
        )
    inputs, tensors = [], []
    for index, given in enumerate(message.inputs):
        parameters = _values(given.parameters)
        data = _data(given, raw[index] if raw else None, parameters)
        if data is not None:
            parameters[_BINARY_SIZE] = len(data)
            tensors.append(data)
        shape = list(given.shape)
        inputs.append({"name": given.name, "datatype": given.datatype, "shape": shape, "parameters": parameters})
    header = {"inputs": inputs, "parameters": {**_values(message.parameters), _ALL_BINARY: True}}
    if message.id:
        header["id"] = message.id
    if message.outputs:
        header["outputs"] = [_requested(output) for output in message.outputs]
    return Parts(json.dumps(header).encode(), tensors, typed=not raw)


def _data(given: Any, raw: bytes | None, parameters: Mapping[str, Any]) -> bytes | None:
    """Return the bytes of an input's values; None for one that refers to shared memory, which generations reject."""
    name, contents = given.name, given.contents
    filled = given.HasField("contents") and contents.ByteSize() > 0
    if raw is not None and filled:
        raise RequestError(f"input {name!r:.80} has contents as well as raw_input_contents; send one of them")
    if raw is not None:
        return raw
    if filled:
        return pack_contents(name, given.datatype, contents)
    if _SHARED_MEMORY in parameters:
        return None
    raise RequestError(f"input {name!r:.80} has no values; send them in raw_input_contents or in its contents")


def _requested(output: Any) -> dict[str, Any]:
    parameters = _values(output.parameters)
    parameters.pop(_BINARY, None)
    return {"name": output.name, "parameters": parameters}


def _values(parameters: Any) -> dict[str, Any]:
    """Return a map of InferParameter as JSON types; an empty parameter is null."""
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = None if choice is None else getattr(parameter, choice)
    return found
