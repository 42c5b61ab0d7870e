"""Open Inference Protocol v2 (KServe's and Triton's): requests to tensors, and what a model says of itself.

Runs in the generation: the supervisor hands bodies on without looking into them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from edged.calibration.letterbox import Letterbox
from edged.spec import InputSpec
from service.inference.binary import Body, RequestError
from service.inference.inputs import (
    DATATYPES,
    IMAGE_INPUT,
    PIXEL_INPUT,
    TENSOR_INPUT,
    parameters_of,
    read_files,
    read_images,
)

LOGITS = "logits"
_BINARY_OUTPUTS = "binary_data_output"  # parameter of a request: every output as bytes


@dataclass(frozen=True)
class Request:
    """One inference.

    Attributes:
        images: Network input, float32 [b, channels, size, size].
        id: Given by the client, repeated in the response; None for none.
        outputs: Names of the outputs asked for; empty for the usual ones.
        parameters: Given by the client, for the model.
        letterboxes: Where each image lies in its square; empty where they are prepared tensors, or cropped.
        binary: Names of the outputs that go as bytes, whether or not they are asked for.
        rival: What another generation answered; the response then tells how far the two agree. None for a client's.
        files: The encoded images, as they came; empty for tensors.
    """

    images: Tensor
    id: str | None = None
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    letterboxes: tuple[Letterbox, ...] = ()
    binary: frozenset[str] = frozenset()
    rival: Body | None = None
    files: tuple[bytes | memoryview, ...] = ()


def parse_request(body: Body, spec: InputSpec, outputs: Sequence[str] = (LOGITS,)) -> Request:
    """Read an inference request.

    Args:
        body: JSON, with the tensor behind it or in it. With no JSON at all it is one encoded image.
        spec: What the model reads.
        outputs: Names of the outputs that can be asked for.

    Raises:
        RequestError: It is not as documented; names the key, the value and what is wanted.
    """
    text, behind = body.split()
    if body.json_bytes == 0:  # Triton's "raw binary request"
        images, letterboxes = read_files([behind], spec)
        return Request(images, letterboxes=letterboxes, files=(behind,))
    data = _object(text)
    identity = data.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RequestError(f"id has value {identity!r:.80}; send a string")
    parameters = parameters_of(data)
    all_binary = _flag(parameters.pop(_BINARY_OUTPUTS, False), _BINARY_OUTPUTS)
    asked = _outputs(data.get("outputs"), outputs, all_binary)
    binary = frozenset(name for name in outputs if asked.get(name, all_binary))
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        names = ", ".join(map(repr, DATATYPES))
        raise RequestError(f"'inputs' must be a list of one object, named one of {names}")
    images, letterboxes, files = read_images(inputs[0], behind, spec)
    return Request(images, identity, tuple(asked), parameters, letterboxes, binary, files=files)


def metadata(model: str, version: str, spec: InputSpec, outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What GET /v2/models/{model} answers.

    Args:
        model: Model name.
        version: Generation.
        spec: What the model reads.
        outputs: Name, datatype, shape and perhaps parameters of each.
    """
    shape = [-1, spec.channels, spec.size, spec.size]
    return {
        "name": model,
        "versions": [version],
        "platform": "edged_torch",
        "inputs": [
            {"name": TENSOR_INPUT, "datatype": "FP32", "shape": shape},
            {"name": PIXEL_INPUT, "datatype": "UINT8", "shape": shape},
            {"name": IMAGE_INPUT, "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "base64"}},
        ],
        "outputs": [dict(output) for output in outputs],
    }


def error_body(message: str) -> bytes:
    """The body of every response that is no success."""
    return json.dumps({"error": message}).encode()


def _object(text: bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"body is no JSON: {error}; if a tensor follows it, give its length in Inference-Header-Content-Length"
        ) from None
    if not isinstance(data, dict):
        raise RequestError(f"body is a JSON {type(data).__name__}; send an object with 'inputs'")
    return data


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"parameter {key} has value {value!r:.80}; choose true or false")
    return value


def _outputs(asked: object, known: Sequence[str], all_binary: bool) -> dict[str, bool]:
    """The outputs asked for, and whether each goes as bytes."""
    if asked is None:
        return {}
    if not isinstance(asked, list) or any(not isinstance(o, dict) or o.get("name") not in known for o in asked):
        names = " or ".join(map(repr, known))
        raise RequestError(f"'outputs' has value {asked!r:.80}; leave it out or ask for {names}")
    found = {}
    for output in asked:
        parameters = parameters_of(output)
        found[output["name"]] = _flag(parameters.pop("binary_data", all_binary), "binary_data")
        if parameters:
            raise RequestError(f"unknown parameter {min(parameters)!r:.80} of an output; known: binary_data")
    return found
