"""Requests and metadata of the Open Inference Protocol v2, which KServe and Triton use.

Runs in the generation: the supervisor passes bodies on without parsing them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edged.calibration.formats import format_of
from edged.calibration.letterbox import Letterbox
from edged.spec import InputSpec
from service.inference.inputs import (
    DATATYPES,
    IMAGE_INPUT,
    PIXEL_INPUT,
    TENSOR_INPUT,
    Images,
    parameters_of,
    read_files,
    read_images,
)
from service.ipc.messages import Body, RequestError

LOGITS = "logits"
BINARY_OUTPUTS = "binary_data_output"  # parameter of a request: send every output as bytes
_FOR_CLIENTS = "content_type"  # parameter of an output: MLServer's clients say with it how they decode it
_CLASSIFICATION = "classification"  # parameter of an output: the most probable classes, as text


@dataclass(frozen=True)
class Request:
    """One inference request.

    Attributes:
        images: Network input, float32 [b, channels, size, size].
        id: Id chosen by the client, repeated in the response; None if it chose none.
        outputs: Names of the requested outputs; empty for the default ones.
        parameters: Parameters that the client sets for the model.
        letterboxes: Position of each image in its square; empty for prepared tensors and for cropped images.
        binary: Names of the outputs that are sent as bytes, whether or not they are requested.
        reference: Reply of another generation that the outputs are compared with; None for a request of a client.
        files: Encoded images as they were sent; empty for tensors.
        classification: Number of classes by the name of an output that is asked for by Triton's classification
            extension.
        is_form: Whether it is image files as a person sends them, see `service.inference.forms`.
        picture: Format of the picture that it asks for as the answer, as Pillow names it; None for outputs.
    """

    images: Images
    id: str | None = None
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    letterboxes: tuple[Letterbox, ...] = ()
    binary: frozenset[str] = frozenset()
    reference: Body | None = None
    files: tuple[bytes | memoryview, ...] = ()
    classification: Mapping[str, int] = field(default_factory=dict)
    is_form: bool = False
    picture: str | None = None


class _Asked(NamedTuple):
    """What a request says of its outputs.

    Attributes:
        binary: Whether each of the requested outputs is sent as bytes, by name; empty if none is named.
        classification: See `Request.classification`.
    """

    binary: Mapping[str, bool]
    classification: Mapping[str, int]


def parse_request(
    body: Body, spec: InputSpec, outputs: Sequence[str] = (LOGITS,), parsed: dict[str, Any] | None = None
) -> Request:
    """Read an inference request.

    Args:
        body: JSON with the tensor in it or after it; without any JSON, one encoded image.
        spec: Input of the model.
        outputs: Names of the outputs that can be requested.
        parsed: The JSON, if another process has parsed it; modified.

    Raises:
        RequestError: The body is not as documented; the message names the key, the value and what to send.
    """
    text, tail = body.parts()
    if body.json_bytes == 0:  # Triton's "raw binary request"
        images, letterboxes = read_files([tail], spec)
        return Request(images, letterboxes=letterboxes, files=(tail,))
    data = parse_json(bytes(text)) if parsed is None else parsed
    identity = data.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RequestError(f"id has value {identity!r:.80}; send a string")
    parameters = parameters_of(data)
    all_binary = _flag(parameters.pop(BINARY_OUTPUTS, False), BINARY_OUTPUTS)
    asked = _outputs(data.get("outputs"), outputs, all_binary)
    binary = frozenset(name for name in outputs if asked.binary.get(name, all_binary))
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        names = ", ".join(map(repr, DATATYPES))
        raise RequestError(f"'inputs' must be a list of one object, named one of {names}")
    images, letterboxes, files = read_images(inputs[0], tail, spec)
    return Request(
        images,
        identity,
        tuple(asked.binary),
        parameters,
        letterboxes,
        binary,
        files=files,
        classification=asked.classification,
    )


def metadata(
    model: str, version: str, engine: str, spec: InputSpec, outputs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the body of the response to GET /v2/models/{model}.

    Args:
        model: Model name.
        version: Number of the generation.
        engine: Name of the engine that computes the network.
        spec: Input of the model.
        outputs: Name, datatype, shape and optional parameters of each output.
    """
    shape = [-1, spec.channels, spec.size, spec.size]
    # A second dimension for files, too: perf_analyzer takes the first as the batch and rejects a tensor without others.
    return {
        "name": model,
        "versions": [version],
        "platform": f"edged_{engine}",
        "inputs": [
            {"name": TENSOR_INPUT, "datatype": "FP32", "shape": shape},
            {"name": PIXEL_INPUT, "datatype": "UINT8", "shape": shape},
            {"name": IMAGE_INPUT, "datatype": "BYTES", "shape": [-1, 1], "parameters": {"content_type": "base64"}},
        ],
        "outputs": [dict(output) for output in outputs],
    }


def error_body(message: str) -> bytes:
    """Return the body of an error response."""
    return json.dumps({"error": message}).encode()


def parse_json(text: bytes) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        RequestError: The text is no JSON object.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise RequestError("body is JSON that is nested too deeply; send an object with 'inputs'") from None
    except ValueError as error:
        if (kind := format_of(text)) is not None:
            raise RequestError(
                f"body is a {kind} image and not JSON; send the header Content-Type: image/{kind.lower()} with it"
            ) from None
        if text.lstrip()[:1] not in (b"{", b"["):
            raise RequestError(
                f"body begins with {bytes(text[:20])!r} and is not JSON; send an object with 'inputs', or image files"
                " with Content-Type: image/jpeg or multipart/form-data"
            ) from None
        raise RequestError(
            f"body is not JSON: {error}; if a tensor follows it, give its length in Inference-Header-Content-Length"
        ) from None
    if not isinstance(data, dict):
        raise RequestError(f"body is a JSON {type(data).__name__}; send an object with 'inputs'")
    return data


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"parameter {key} has value {value!r:.80}; choose true or false")
    return value


def _outputs(asked: object, known: Sequence[str], all_binary: bool) -> _Asked:
    """Read the requested outputs."""
    if asked is None:
        return _Asked({}, {})
    names = " or ".join(map(repr, known))
    if not isinstance(asked, list) or not all(isinstance(output, dict) and "name" in output for output in asked):
        raise RequestError(f"'outputs' has value {asked!r:.80}; leave it out, or send a list of objects named {names}")
    binary: dict[str, bool] = {}
    classification = {}
    for output in asked:
        parameters, name = parameters_of(output), output["name"]
        if name not in known:
            raise RequestError(f"unknown output {name!r:.80}; leave 'outputs' out or request {names}")
        if name in binary:
            raise RequestError(f"output {name!r} is requested twice; name each once")
        binary[name] = _flag(parameters.pop("binary_data", all_binary), "binary_data")
        if _CLASSIFICATION in parameters:
            classification[name] = parameters.pop(_CLASSIFICATION)
        parameters.pop(_FOR_CLIENTS, None)
        if parameters:
            known_here = f"binary_data, {_CLASSIFICATION}"
            raise RequestError(f"unknown parameter {min(parameters)!r:.80} of an output; known: {known_here}")
    return _Asked(binary, classification)
