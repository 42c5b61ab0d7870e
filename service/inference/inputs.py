"""The input of a request to images as the network reads them. Runs in the generation.

What an input is follows from its name:

- `input`: a prepared tensor, as training fed the network. FP32, or FP16 or FP64, which become FP32.
- `pixels`: UINT8 intensities, a quarter of the bytes; normalized here, as calibration images are.
- `image`: BYTES, encoded files of any size; scaled and normalized here.

No other type has a meaning for an image. INT8 above all: a quantized network computes with scales of its own.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edged.calibration.images import Decoded, decode, normalize
from edged.calibration.letterbox import Letterbox
from edged.errors import ImageError
from edged.spec import Fit, InputSpec
from service.inference.binary import RequestError, tensor_data, unpack_elements, unpack_numbers

MAX_BATCH = 128  # images a request: bounds the memory that a small body of tiny images can ask for
_LETTERBOX_VALUES = MAX_BATCH * 3 * 224 * 224  # likewise for detectors, whose images are large: 15 of 640 pixels
TENSOR_INPUT, PIXEL_INPUT, IMAGE_INPUT = "input", "pixels", "image"
# Of each input; the first is in the metadata.
DATATYPES: Mapping[str, tuple[str, ...]] = {
    TENSOR_INPUT: ("FP32", "FP16", "FP64"),
    PIXEL_INPUT: ("UINT8",),
    IMAGE_INPUT: ("BYTES",),
}


def max_batch(spec: InputSpec) -> int:
    """Most images of a request."""
    if spec.fit is not Fit.LETTERBOX:
        return MAX_BATCH
    return max(1, min(MAX_BATCH, _LETTERBOX_VALUES // (spec.channels * spec.size**2)))


def read_images(
    tensor: Mapping[str, Any], behind: memoryview, spec: InputSpec
) -> tuple[Tensor, tuple[Letterbox, ...], tuple[bytes | memoryview, ...]]:
    """The images of a request's only input.

    Args:
        tensor: The input, as the JSON has it.
        behind: Everything that lies behind the JSON.
        spec: What the model reads.

    Returns:
        Network input float32 [b, channels, size, size]; where each image lies in its square, empty for prepared tensors
        and for cropped images; and the encoded files, empty for tensors.

    Raises:
        RequestError: It is not as documented.
    """
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if not isinstance(name, str) or datatype not in DATATYPES.get(name, ()):
        known = ", ".join(f"{name!r} as {' or '.join(types)}" for name, types in DATATYPES.items())
        raise RequestError(f"input {name!r:.80} of datatype {datatype!r:.80}; send {known}")
    parameters = parameters_of(tensor)
    raw = tensor_data(parameters, behind)
    if raw is not None and tensor.get("data") is not None:
        raise RequestError(f"input {name!r} has data in the JSON and {len(raw)} bytes behind it; send one of them")
    if name == IMAGE_INPUT:
        files = _encoded(tensor, parameters, raw, spec)
        return *read_files(files, spec), tuple(files)
    shape = _shape(tensor, 4, max_batch(spec))
    wanted = [spec.channels, spec.size, spec.size]
    if shape[1:] != wanted:
        raise RequestError(f"shape has value {shape!r:.80}; this model reads {[-1, *wanted]}")
    values = _listed(tensor, shape) if raw is None else unpack_numbers(raw, datatype, math.prod(shape))
    return (_pixels if name == PIXEL_INPUT else _prepared)(values.reshape(shape), spec), (), ()


def read_files(files: Sequence[bytes | memoryview], spec: InputSpec) -> tuple[Tensor, tuple[Letterbox, ...]]:
    """Likewise of encoded files.

    Raises:
        RequestError: One of them is no image.
    """
    decoded = [_decode(index, bytes(file), spec) for index, file in enumerate(files)]
    images = normalize(torch.from_numpy(np.stack([image.pixels for image in decoded])), spec)
    if spec.fit is not Fit.LETTERBOX:
        return images, ()
    return images, tuple(Letterbox(image.width, image.height, spec.size) for image in decoded)


def parameters_of(owner: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the parameters of a request, an input or an output.

    Raises:
        RequestError: They are no object, or speak of shared memory.
    """
    parameters = owner.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"parameters has value {parameters!r:.80}; send an object")
    if "shared_memory_region" in parameters:
        raise RequestError("shared_memory_region is not supported; send tensors in the body")
    return dict(parameters)


def _shape(tensor: Mapping[str, Any], dimensions: int, most: int) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != dimensions or any(type(size) is not int for size in shape):
        raise RequestError(f"shape has value {shape!r:.80}; send {dimensions} whole numbers")
    if not 1 <= shape[0] <= most:
        raise RequestError(f"shape has value {shape!r:.80}; the first entry must be 1 to {most}")
    return shape


def _listed(tensor: Mapping[str, Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Numbers from the JSON."""
    try:
        given: npt.NDArray[Any] = np.asarray(tensor.get("data"))
    except (ValueError, OverflowError):  # ragged, or nested too deep
        given = np.asarray(None)
    if given.dtype.kind not in "iuf":
        raise RequestError("data is no list of numbers, flat or nested like the shape")
    if given.size != math.prod(shape) or given.shape not in ((given.size,), tuple(shape)):
        raise RequestError(f"data has shape {list(given.shape)}; send {math.prod(shape)} numbers for shape {shape}")
    return given


def _prepared(values: npt.NDArray[Any], _: InputSpec) -> Tensor:
    """A tensor in torch's channels_last order, as the network wants it. This is the only copy.

    By numpy, a channel at a time: torch takes as long, and wakes a thread for it that every request would wait for.
    """
    count, channels, height, width = values.shape
    images = np.empty((count, height, width, channels), np.float32)
    with np.errstate(over="ignore"):  # becomes infinity, which is refused below
        for channel in range(channels):
            images[..., channel] = values[:, channel]
    if not np.isfinite(images).all():
        raise RequestError("data holds NaN, infinity or a number too large for FP32")
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


def _pixels(values: npt.NDArray[Any], spec: InputSpec) -> Tensor:
    with np.errstate(invalid="ignore"):  # NaN and the like are no longer what they were, and refused below
        pixels: npt.NDArray[np.uint8] = values.astype(np.uint8)
    if not np.array_equal(pixels, values):
        raise RequestError("data holds a number that is no UINT8; send whole numbers from 0 to 255")
    return normalize(torch.from_numpy(pixels), spec)


def _encoded(
    tensor: Mapping[str, Any], parameters: Mapping[str, Any], raw: memoryview | None, spec: InputSpec
) -> Sequence[bytes | memoryview]:
    """Files of images; behind the JSON they are as they are, unless they are said to be base64 there, too."""
    (count,) = _shape(tensor, 1, max_batch(spec))
    known = ("base64",) if raw is None else ("raw", "base64")
    encoding = parameters.get("content_type", known[0])
    if encoding not in known:
        where = "as base64 text" if raw is None else "raw or as base64"
        raise RequestError(f"parameters.content_type has value {encoding!r:.80}; send images {where}")
    if raw is not None:
        elements = unpack_elements(raw, count)
        return elements if encoding == "raw" else [_decoded_base64(*each) for each in enumerate(elements)]
    data = tensor.get("data")
    if not isinstance(data, list) or len(data) != count or any(not isinstance(text, str) for text in data):
        raise RequestError(f"data must be a list of {count} base64 strings, one an image")
    return [_decoded_base64(index, text) for index, text in enumerate(data)]


def _decoded_base64(index: int, text: str | memoryview) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, or characters outside ASCII
        raise RequestError(f"image {index} is no base64: {error}") from None


def _decode(index: int, file: bytes, spec: InputSpec) -> Decoded:
    try:
        return decode(file, spec)
    except ImageError as error:
        raise RequestError(f"image {index} {error}") from None
