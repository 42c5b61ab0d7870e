"""Translation of a generation's reply to a ModelInferResponse."""

from __future__ import annotations

import json
import math
from typing import Any

from service.grpc.contents import fill_contents
from service.grpc.messages import ModelInferResponse
from service.ipc.messages import Body

_BINARY_SIZE = "binary_data_size"


def response_of(body: Body, *, typed: bool = False) -> Any:
    """Return a reply as a ModelInferResponse.

    Args:
        body: JSON of the reply, followed by the bytes of all its outputs.
        typed: Whether the values are put into the typed contents of each output, not into `raw_output_contents`.
    """
    text, tail = body.split()
    reply = json.loads(text)
    message = ModelInferResponse(
        model_name=reply["model_name"], model_version=reply["model_version"], id=reply.get("id", "")
    )
    _set(message.parameters, reply.get("parameters", {}))
    for output in reply["outputs"]:
        parameters = dict(output["parameters"])
        size = parameters.pop(_BINARY_SIZE)
        data, tail = tail[:size], tail[size:]
        shape = output["shape"]
        tensor = message.outputs.add(name=output["name"], datatype=output["datatype"], shape=shape)
        _set(tensor.parameters, parameters)
        if typed:
            fill_contents(tensor.contents, output["datatype"], math.prod(shape), data)
        else:
            message.raw_output_contents.append(bytes(data))
    return message


def error_of(body: Body) -> str:
    """Return the message of a reply that is an error."""
    return str(json.loads(body.split()[0])["error"])


def _set(parameters: Any, values: dict[str, Any]) -> None:
    """Set a map of InferParameter from JSON types."""
    for name, value in values.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param"}.get(type(value), "string_param")
        setattr(parameters[name], kind, value if kind != "string_param" else str(value))
