"""Open Inference Protocol v2 (KServe's and Triton's): JSON requests to tensors, logits to JSON responses.

Runs in the generation: the supervisor hands bodies on without looking into them.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edged.calibration.images import decode_bytes, normalize
from edged.errors import ImageError
from edged.spec import InputSpec

MAX_BATCH = 128  # images a request: bounds the memory that a small body of tiny images can ask for
TENSOR_INPUT, IMAGE_INPUT, OUTPUT = "input", "image", "logits"


class RequestError(Exception):
    """The request is at fault; the message goes into the body of a 400."""


@dataclass(frozen=True)
class Request:
    """One inference.

    Attributes:
        images: Network input, float32 [b, channels, size, size].
        id: Given by the client, repeated in the response; None for none.
    """

    images: Tensor
    id: str | None = None


def parse_request(body: bytes, spec: InputSpec) -> Request:
    """Read an inference request.

    Args:
        body: JSON.
        spec: What the model reads.

    Raises:
        RequestError: It is not as documented; names the key, the value and what is wanted.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"body is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise RequestError(f"body is a JSON {type(data).__name__}; send an object with 'inputs'")
    identity = data.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RequestError(f"id has value {identity!r:.80}; send a string")
    _check_outputs(data.get("outputs"))
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(f"'inputs' must be a list of one object: {TENSOR_INPUT!r} or {IMAGE_INPUT!r}")
    tensor = inputs[0]
    name, kind = tensor.get("name"), tensor.get("datatype")
    if (name, kind) == (TENSOR_INPUT, "FP32"):
        return Request(_tensor(tensor, spec), identity)
    if (name, kind) == (IMAGE_INPUT, "BYTES"):
        return Request(_encoded_images(tensor, spec), identity)
    raise RequestError(
        f"input {name!r:.80} of datatype {kind!r:.80}; send {TENSOR_INPUT!r} as FP32 or {IMAGE_INPUT!r} as BYTES"
    )


def format_response(logits: Tensor, model: str, version: str, identity: str | None) -> bytes:
    """The body of a response.

    Args:
        logits: float32 [b, classes].
        model: Model name.
        version: Generation.
        identity: The request's id.
    """
    response: dict[str, Any] = {"model_name": model, "model_version": version}
    if identity is not None:
        response["id"] = identity
    output = {"name": OUTPUT, "datatype": "FP32", "shape": list(logits.shape), "data": logits.flatten().tolist()}
    return json.dumps({**response, "outputs": [output]}, separators=(",", ":")).encode()


def metadata(model: str, version: str, spec: InputSpec, outputs: int, classes: Sequence[str] | None) -> dict[str, Any]:
    """What GET /v2/models/{model} answers."""
    logits: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": [-1, outputs]}
    if classes is not None:
        logits["parameters"] = {"classes": list(classes)}
    return {
        "name": model,
        "versions": [version],
        "platform": "edged_torch",
        "inputs": [
            {"name": TENSOR_INPUT, "datatype": "FP32", "shape": [-1, spec.channels, spec.size, spec.size]},
            {"name": IMAGE_INPUT, "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "base64"}},
        ],
        "outputs": [logits],
    }


def error_body(message: str) -> bytes:
    """The body of every response that is no success."""
    return json.dumps({"error": message}).encode()


def _check_outputs(outputs: object) -> None:
    if outputs is None:
        return
    if not isinstance(outputs, list) or any(not isinstance(o, dict) or o.get("name") != OUTPUT for o in outputs):
        raise RequestError(f"'outputs' has value {outputs!r:.80}; leave it out or ask for {OUTPUT!r}")


def _shape(tensor: Mapping[str, Any], dimensions: int) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != dimensions or any(type(size) is not int for size in shape):
        raise RequestError(f"shape has value {shape!r:.80}; send {dimensions} whole numbers")
    if not 1 <= shape[0] <= MAX_BATCH:
        raise RequestError(f"shape has value {shape}; the first entry must be 1 to {MAX_BATCH}")
    return shape


def _tensor(tensor: Mapping[str, Any], spec: InputSpec) -> Tensor:
    shape = _shape(tensor, 4)
    wanted = [spec.channels, spec.size, spec.size]
    if shape[1:] != wanted:
        raise RequestError(f"shape has value {shape}; this model reads {[-1, *wanted]}")
    try:
        given: npt.NDArray[Any] = np.asarray(tensor.get("data"))
    except (ValueError, OverflowError):  # ragged, or nested too deep
        given = np.asarray(None)
    if given.dtype.kind not in "iuf":
        raise RequestError("data is no list of numbers, flat or nested like the shape")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused below
        values: npt.NDArray[np.float32] = given.astype(np.float32)
    if values.size != math.prod(shape) or values.shape not in ((values.size,), tuple(shape)):
        raise RequestError(f"data has shape {list(values.shape)}; send {math.prod(shape)} numbers for shape {shape}")
    if not np.isfinite(values).all():
        raise RequestError("data holds NaN, infinity or a number too large for FP32")
    return torch.from_numpy(values.reshape(shape))


def _encoded_images(tensor: Mapping[str, Any], spec: InputSpec) -> Tensor:
    (count,) = _shape(tensor, 1)
    data, parameters = tensor.get("data"), tensor.get("parameters") or {}
    encoding = parameters.get("content_type", "base64") if isinstance(parameters, dict) else parameters
    if encoding != "base64":
        raise RequestError(f"parameters.content_type has value {encoding!r:.80}; send images as base64 text")
    if not isinstance(data, list) or len(data) != count or any(not isinstance(text, str) for text in data):
        raise RequestError(f"data must be a list of {count} base64 strings, one an image")
    pixels = np.stack([_decode(index, text, spec) for index, text in enumerate(data)])
    return normalize(torch.from_numpy(pixels), spec)


def _decode(index: int, text: str, spec: InputSpec) -> npt.NDArray[np.uint8]:
    try:
        return decode_bytes(base64.b64decode(text, validate=True), spec)
    except ValueError as error:  # binascii.Error, or characters outside ASCII
        raise RequestError(f"image {index} is no base64: {error}") from None
    except ImageError as error:
        raise RequestError(f"image {index} {error}") from None
