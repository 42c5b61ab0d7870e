"""Conversion of a request's input to images as the network reads them. Runs in the generation.

The name of an input determines its kind:

- `input`: a prepared tensor, as in training. FP32, or FP16 or FP64, which are converted to FP32.
- `pixels`: UINT8 intensities, a quarter of the bytes; normalized here like calibration images.
- `image`: BYTES, encoded files of any size; scaled and normalized here.

Other datatypes have no meaning for an image. That includes INT8: a quantized network computes with its own scales.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.calibration.images import Decoded, decode, normalize
from edged.calibration.letterbox import Letterbox
from edged.errors import ImageError
from edged.spec import Fit, InputSpec
from service.inference.binary import tensor_data, unpack_numbers
from service.ipc.elements import unpack_elements
from service.ipc.messages import RequestError
from service.ipc.options import MAX_BATCH

Images = npt.NDArray[np.float32]

_LETTERBOX_VALUES = MAX_BATCH * 3 * 224 * 224  # the same bound for detectors, whose images are large: 15 of 640 pixels
# Beyond this many times the range of images, an overflow is a fault of the request. Nearer to it, other normalizations
# and augmentations are in use, and a network whose outputs are not finite is at fault.
_FAR_BEYOND = 10.0
_DIMENSIONS = 4  # of a tensor
_MOST_TEXTS = 4096  # more than there are images in a request
TENSOR_INPUT, PIXEL_INPUT, IMAGE_INPUT = "input", "pixels", "image"
# Input -> its datatypes; the first is in the metadata.
DATATYPES: Mapping[str, tuple[str, ...]] = {
    TENSOR_INPUT: ("FP32", "FP16", "FP64"),
    PIXEL_INPUT: ("UINT8",),
    IMAGE_INPUT: ("BYTES",),
}


def max_batch(spec: InputSpec) -> int:
    """Return the largest number of images of a request."""
    if spec.fit is not Fit.LETTERBOX:
        return MAX_BATCH
    return max(1, min(MAX_BATCH, _LETTERBOX_VALUES // (spec.channels * spec.size**2)))


def read_images(
    tensor: Mapping[str, Any], tail: memoryview, spec: InputSpec
) -> tuple[Images, tuple[Letterbox, ...], tuple[bytes | memoryview, ...]]:
    """Read the images of a request's only input.

    Args:
        tensor: The input, as in the JSON.
        tail: All bytes after the JSON.
        spec: Input of the model.

    Returns:
        Network input float32 [b, channels, size, size]; the position of each image in its square, empty for prepared
        tensors and for cropped images; and the encoded files, empty for tensors.

    Raises:
        RequestError: The input is not as documented.
    """
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if not isinstance(name, str) or datatype not in DATATYPES.get(name, ()):
        known = ", ".join(f"{name!r} as {' or '.join(types)}" for name, types in DATATYPES.items())
        raise RequestError(f"input {name!r:.80} of datatype {datatype!r:.80}; send {known}")
    parameters = parameters_of(tensor)
    raw = tensor_data(parameters, tail)
    if raw is not None and tensor.get("data") is not None:
        raise RequestError(f"input {name!r} has data in the JSON and {len(raw)} bytes after it; send one of them")
    if name == IMAGE_INPUT:
        files = _encoded(tensor, parameters, raw, spec)
        return *read_files(files, spec), tuple(files)
    shape = _shape(tensor, _DIMENSIONS, max_batch(spec))
    wanted = [spec.channels, spec.size, spec.size]
    if shape[1:] != wanted:
        raise RequestError(f"shape has value {shape!r:.80}; this model reads {[-1, *wanted]}")
    values = _listed(tensor, shape) if raw is None else unpack_numbers(raw, datatype, math.prod(shape))
    return (_pixels if name == PIXEL_INPUT else _prepared)(values.reshape(shape), spec), (), ()


def read_files(files: Sequence[bytes | memoryview], spec: InputSpec) -> tuple[Images, tuple[Letterbox, ...]]:
    """Decode and prepare encoded images.

    Args:
        files: Contents of the files.
        spec: Input of the model.

    Returns:
        Network input float32 [b, channels, size, size], and the position of each image in its square; the latter is
        empty for cropped images.

    Raises:
        RequestError: One of the files cannot be read as an image.
    """
    decoded = [_decode(index, bytes(file), spec) for index, file in enumerate(files)]
    images = normalize(np.stack([image.pixels for image in decoded]), spec)
    if spec.fit is not Fit.LETTERBOX:
        return images, ()
    return images, tuple(Letterbox(image.width, image.height, spec.size) for image in decoded)


def check_plausible(images: Images, spec: InputSpec) -> None:
    """Check that an input whose outputs are not finite is one that the model could be expected to compute.

    Raises:
        RequestError: It holds values far beyond those of any image.
    """
    mean, std = (np.array(values, np.float64) for values in (spec.mean, spec.std))
    lowest, highest = float(np.min(-mean / std)), float(np.max((1 - mean) / std))
    largest = float(max(images.max(), -images.min()))
    if largest > _FAR_BEYOND * max(-lowest, highest):
        raise RequestError(
            f"data holds values as large as {largest:.3g}, for which the model's output is NaN or infinity; images"
            f" prepared for this model lie between {lowest:.3g} and {highest:.3g}"
        )


def parameters_of(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the parameters of a request, an input or an output.

    Raises:
        RequestError: The parameters are not an object, or refer to shared memory.
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


def as_numbers(data: Any) -> npt.NDArray[Any] | None:
    """Return the numbers of a list, flat or nested, as an array; None if it is no list of numbers only.

    Args:
        data: A value of JSON; or an array, which is returned.
    """
    if isinstance(data, np.ndarray):
        return data
    if not _has_only_numbers(data, _DIMENSIONS):
        return None
    try:
        given: npt.NDArray[Any] = np.asarray(data)
    except (ValueError, OverflowError):  # ragged, or too large
        return None
    return given if given.dtype.kind in "iuf" else None


def _has_only_numbers(data: Any, dimensions: int) -> bool:
    """Return whether all values of a list are numbers.

    numpy gives each entry of an array the length of the longest text in it: 150 kB of JSON could take 20 GB.
    """
    if not isinstance(data, list):
        return False
    kinds = set(map(type, data))
    if kinds <= {int, float}:
        return True
    return kinds == {list} and dimensions > 1 and all(_has_only_numbers(row, dimensions - 1) for row in data)


def as_texts(data: Any) -> list[str | memoryview] | None:
    """Return the texts of a list, flat or each in a list of its own; None if it is no list of texts only.

    Args:
        data: A value of JSON, in which texts may also be bytes.
    """
    if not isinstance(data, list) or len(data) > _MOST_TEXTS:
        return None
    if all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    return data if all(isinstance(text, (str, memoryview)) for text in data) else None


def _listed(tensor: Mapping[str, Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Return the numbers of a tensor in the JSON."""
    given = as_numbers(tensor.get("data"))
    if given is None:
        raise RequestError("data is not a list of numbers, flat or nested like the shape")
    if given.size != math.prod(shape) or given.shape not in ((given.size,), tuple(shape)):
        raise RequestError(f"data has shape {list(given.shape)}; send {math.prod(shape)} numbers for shape {shape}")
    return given


def _prepared(values: npt.NDArray[Any], _: InputSpec) -> Images:
    """Copy a tensor out of the memory that it arrived in. This is the only copy."""
    with np.errstate(over="ignore"):  # becomes infinity, which is rejected below
        images = values.astype(np.float32, order="C")
    if not np.isfinite(images).all():
        raise RequestError("data holds NaN, infinity or a number too large for FP32")
    return images


def _pixels(values: npt.NDArray[Any], spec: InputSpec) -> Images:
    if values.dtype == np.uint8:  # bytes after the JSON: there is nothing to check, and no reason to copy them
        return normalize(values, spec)
    with np.errstate(invalid="ignore"):  # NaN and the like change their value, and are rejected below
        pixels: npt.NDArray[np.uint8] = values.astype(np.uint8)
    if not np.array_equal(pixels, values):
        raise RequestError("data holds a number that is not a UINT8; send whole numbers from 0 to 255")
    return normalize(pixels, spec)


def _encoded(
    tensor: Mapping[str, Any], parameters: Mapping[str, Any], raw: memoryview | None, spec: InputSpec
) -> Sequence[bytes | memoryview]:
    """Return the encoded image files. After the JSON they are raw by default, in the JSON they are base64.

    The shape is [n, 1], as in the metadata, or [n].
    """
    shape = tensor.get("shape")
    column = isinstance(shape, list) and len(shape) == 2 and shape[1] == 1
    count = _shape(tensor, 2 if column else 1, max_batch(spec))[0]
    known = ("base64",) if raw is None else ("raw", "base64")
    encoding = parameters.get("content_type", known[0])
    if encoding not in known:
        where = "as base64 text" if raw is None else "raw or as base64"
        raise RequestError(f"parameters.content_type has value {encoding!r:.80}; send images {where}")
    if raw is not None:
        elements = unpack_elements(raw, count)
        return elements if encoding == "raw" else [_decoded_base64(*each) for each in enumerate(elements)]
    texts = as_texts(tensor.get("data"))
    if texts is None or len(texts) != count:
        raise RequestError(f"data must be a list of {count} base64 strings, one per image")
    return [_decoded_base64(index, text) for index, text in enumerate(texts)]


def _decoded_base64(index: int, text: str | memoryview) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, or characters outside ASCII
        raise RequestError(f"image {index} is not valid base64: {error}") from None


def _decode(index: int, file: bytes, spec: InputSpec) -> Decoded:
    try:
        return decode(file, spec)
    except ImageError as error:
        raise RequestError(f"image {index} {error}") from None
