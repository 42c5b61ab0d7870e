"""Open Inference Protocol v2 (KServe's and Triton's): JSON requests to tensors, tensors to JSON responses.

Runs in the generation: the supervisor hands bodies on without looking into them.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edged.calibration.images import Decoded, decode, normalize
from edged.calibration.letterbox import Letterbox
from edged.errors import ImageError
from edged.spec import Fit, InputSpec

MAX_BATCH = 128  # images a request: bounds the memory that a small body of tiny images can ask for
_LETTERBOX_VALUES = MAX_BATCH * 3 * 224 * 224  # likewise for detectors, whose images are large: 15 of 640 pixels
TENSOR_INPUT, IMAGE_INPUT, LOGITS = "input", "image", "logits"


class RequestError(Exception):
    """The request is at fault; the message goes into the body of a 400."""


@dataclass(frozen=True)
class Request:
    """One inference.

    Attributes:
        images: Network input, float32 [b, channels, size, size].
        id: Given by the client, repeated in the response; None for none.
        outputs: Names of the outputs asked for; empty for the usual ones.
        parameters: Given by the client.
        letterboxes: Where each image lies in its square; empty where they are prepared tensors, or cropped.
    """

    images: Tensor
    id: str | None = None
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    letterboxes: tuple[Letterbox, ...] = ()


@dataclass(frozen=True)
class OutputTensor:
    """One output of a response.

    Attributes:
        name: As in the metadata.
        datatype: FP32, INT64 or BYTES.
        shape: Its sides.
        data: Flat, in row-major order, JSON types.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: Sequence[float | int | str]


def float_output(name: str, values: Tensor) -> OutputTensor:
    """A float32 tensor as an output."""
    return OutputTensor(name, "FP32", list(values.shape), values.flatten().tolist())


def max_batch(spec: InputSpec) -> int:
    """Most images of a request."""
    if spec.fit is not Fit.LETTERBOX:
        return MAX_BATCH
    return max(1, min(MAX_BATCH, _LETTERBOX_VALUES // (spec.channels * spec.size**2)))


def parse_request(body: bytes, spec: InputSpec, outputs: Sequence[str] = (LOGITS,)) -> Request:
    """Read an inference request.

    Args:
        body: JSON.
        spec: What the model reads.
        outputs: Names of the outputs that can be asked for.

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
    asked, parameters = _outputs(data.get("outputs"), outputs), data.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"parameters has value {parameters!r:.80}; send an object")
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(f"'inputs' must be a list of one object: {TENSOR_INPUT!r} or {IMAGE_INPUT!r}")
    tensor = inputs[0]
    name, kind = tensor.get("name"), tensor.get("datatype")
    if (name, kind) == (TENSOR_INPUT, "FP32"):
        return Request(_tensor(tensor, spec), identity, asked, parameters)
    if (name, kind) == (IMAGE_INPUT, "BYTES"):
        images, letterboxes = _encoded_images(tensor, spec)
        return Request(images, identity, asked, parameters, letterboxes)
    raise RequestError(
        f"input {name!r:.80} of datatype {kind!r:.80}; send {TENSOR_INPUT!r} as FP32 or {IMAGE_INPUT!r} as BYTES"
    )


def format_response(outputs: Sequence[OutputTensor], model: str, version: str, identity: str | None) -> bytes:
    """The body of a response.

    Args:
        outputs: In the order of the response.
        model: Model name.
        version: Generation.
        identity: The request's id.
    """
    response: dict[str, Any] = {"model_name": model, "model_version": version}
    if identity is not None:
        response["id"] = identity
    listed = [{"name": o.name, "datatype": o.datatype, "shape": list(o.shape), "data": list(o.data)} for o in outputs]
    return json.dumps({**response, "outputs": listed}, separators=(",", ":")).encode()


def metadata(model: str, version: str, spec: InputSpec, outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What GET /v2/models/{model} answers.

    Args:
        model: Model name.
        version: Generation.
        spec: What the model reads.
        outputs: Name, datatype, shape and perhaps parameters of each.
    """
    return {
        "name": model,
        "versions": [version],
        "platform": "edged_torch",
        "inputs": [
            {"name": TENSOR_INPUT, "datatype": "FP32", "shape": [-1, spec.channels, spec.size, spec.size]},
            {"name": IMAGE_INPUT, "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "base64"}},
        ],
        "outputs": [dict(output) for output in outputs],
    }


def error_body(message: str) -> bytes:
    """The body of every response that is no success."""
    return json.dumps({"error": message}).encode()


def _outputs(asked: object, known: Sequence[str]) -> tuple[str, ...]:
    if asked is None:
        return ()
    if not isinstance(asked, list) or any(not isinstance(o, dict) or o.get("name") not in known for o in asked):
        names = " or ".join(map(repr, known))
        raise RequestError(f"'outputs' has value {asked!r:.80}; leave it out or ask for {names}")
    return tuple(dict.fromkeys(output["name"] for output in asked))


def _shape(tensor: Mapping[str, Any], dimensions: int, most: int) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != dimensions or any(type(size) is not int for size in shape):
        raise RequestError(f"shape has value {shape!r:.80}; send {dimensions} whole numbers")
    if not 1 <= shape[0] <= most:
        raise RequestError(f"shape has value {shape}; the first entry must be 1 to {most}")
    return shape


def _tensor(tensor: Mapping[str, Any], spec: InputSpec) -> Tensor:
    shape = _shape(tensor, 4, max_batch(spec))
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


def _encoded_images(tensor: Mapping[str, Any], spec: InputSpec) -> tuple[Tensor, tuple[Letterbox, ...]]:
    (count,) = _shape(tensor, 1, max_batch(spec))
    data, parameters = tensor.get("data"), tensor.get("parameters") or {}
    encoding = parameters.get("content_type", "base64") if isinstance(parameters, dict) else parameters
    if encoding != "base64":
        raise RequestError(f"parameters.content_type has value {encoding!r:.80}; send images as base64 text")
    if not isinstance(data, list) or len(data) != count or any(not isinstance(text, str) for text in data):
        raise RequestError(f"data must be a list of {count} base64 strings, one an image")
    decoded = [_decode(index, text, spec) for index, text in enumerate(data)]
    images = normalize(torch.from_numpy(np.stack([image.pixels for image in decoded])), spec)
    if spec.fit is not Fit.LETTERBOX:
        return images, ()
    return images, tuple(Letterbox(image.width, image.height, spec.size) for image in decoded)


def _decode(index: int, text: str, spec: InputSpec) -> Decoded:
    try:
        return decode(base64.b64decode(text, validate=True), spec)
    except ValueError as error:  # binascii.Error, or characters outside ASCII
        raise RequestError(f"image {index} is no base64: {error}") from None
    except ImageError as error:
        raise RequestError(f"image {index} {error}") from None
