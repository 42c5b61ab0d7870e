"""Formatting of a model's outputs as the body of a response, as JSON or as bytes. Runs in the generation."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from service.inference.binary import NUMBERS, pack_numbers
from service.ipc.elements import pack_elements
from service.ipc.messages import Body


@dataclass(frozen=True)
class OutputTensor:
    """One output of a response.

    Attributes:
        name: Name of the output, as in the metadata.
        datatype: FP32, INT64 or BYTES.
        shape: Size of each dimension.
        values: Numbers, in this shape or flat in row-major order; or strings.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    values: npt.NDArray[Any] | Sequence[int | str]

    @property
    def data(self) -> list[float | int | str]:
        """The values as a flat list of JSON types, in row-major order."""
        return self.values.ravel().tolist() if isinstance(self.values, np.ndarray) else list(self.values)

    def to_bytes(self) -> bytes:
        """Return the values as bytes of the binary tensor data extension."""
        if self.datatype == "BYTES":
            return pack_elements([str(value).encode() for value in self.values])
        return pack_numbers(self.values, self.datatype)


def read_outputs(body: Body) -> dict[str, npt.NDArray[Any]]:
    """Return the numeric outputs of a response by name: the inverse of `format_response`, without strings."""
    text, tail = body.split()
    found = {}
    for output in json.loads(text)["outputs"]:  # orjson refuses half a surrogate pair, see `_json_of`
        size = output.get("parameters", {}).get("binary_data_size", 0)
        raw, tail = tail[:size], tail[size:]
        if (dtype := NUMBERS.get(output["datatype"])) is not None:
            values = np.asarray(output["data"], dtype) if "data" in output else np.frombuffer(raw, dtype)
            found[output["name"]] = values.reshape(output["shape"])
    return found


def float_output(name: str, values: npt.NDArray[np.float32]) -> OutputTensor:
    """Return a float32 array as an output."""
    return OutputTensor(name, "FP32", list(values.shape), values)


def format_response(
    outputs: Sequence[OutputTensor], model: str, version: str, identity: str | None, binary: Collection[str] = ()
) -> Body:
    """Return the body of a response.

    Args:
        outputs: Outputs in the order of the response.
        model: Model name.
        version: Number of the generation.
        identity: Id of the request; None if it has none.
        binary: Names of the outputs that are sent as bytes.
    """
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if identity is not None:
        head["id"] = identity
    listed: list[Mapping[str, Any]] = []
    tail: list[bytes] = []
    for output in outputs:
        described = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if output.name in binary:
            tail.append(output.to_bytes())
            listed.append({**described, "parameters": {"binary_data_size": len(tail[-1])}})
        else:
            listed.append({**described, "data": output.data})
    text = _json_of({**head, "outputs": listed})
    if not tail:
        return Body(text)
    return Body(b"".join([text, *tail]), len(text))


def _json_of(data: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:  # half a surrogate pair in the id of a client, which only escapes can express
        return json.dumps(data, separators=(",", ":")).encode()
