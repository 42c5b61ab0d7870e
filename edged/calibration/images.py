"""Decoding of one encoded image to the uint8 pixels of a network input, shared by calibration and serving.

The geometry is that of torchvision's `Resize(resize)` + `CenterCrop(size)` on PIL images with bilinear, antialiased
filtering, or a `Letterbox` for detectors.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from edged.calibration.letterbox import BORDER, Letterbox
from edged.errors import ImageError
from edged.spec import Fit, InputSpec

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
FORMATS = tuple(_SUFFIXES)
MAX_PIXELS = 64 * 2**20  # per encoded image; 192 MiB when decoded to RGB
MAX_FILE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Decoded:
    """An image as a network input.

    Attributes:
        pixels: Pixels of the input, uint8 [channels, size, size], contiguous.
        width: Width of the upright image before scaling, in pixels.
        height: Height of the upright image before scaling, in pixels.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


def decode_bytes(data: bytes, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Decode one encoded image to pixels, uint8 [channels, size, size]; see `decode`.

    Raises:
        ImageError: The data cannot be decoded.
    """
    return decode(data, spec).pixels


def decode(data: bytes, spec: InputSpec) -> Decoded:
    """Decode, turn upright (EXIF), scale and crop or letterbox one encoded image.

    Grayscale, palette, CMYK and 16-bit images become RGB (or grayscale for a one-channel spec). Alpha is dropped, as
    torchvision's ImageFolder does when it reads training images. Only the first frame of an animation is used.

    Args:
        data: Contents of a JPEG, PNG, WebP or BMP file.
        spec: Size, fit and channels of the network input; mean and std are ignored.

    Raises:
        ImageError: `data` is in no supported format, is damaged, or needs more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size)
            upright = ImageOps.exif_transpose(image)
            fit = _letterbox if spec.fit is Fit.LETTERBOX else _crop
            fitted = fit(_to_mode(upright, "RGB" if spec.channels == 3 else "L"), spec)
            return Decoded(_to_array(fitted), *upright.size)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"has too many pixels; at most {MAX_PIXELS} are allowed") from None
    except UnidentifiedImageError:
        raise ImageError(f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except Exception as error:  # Pillow's parsers raise errors of any type for damaged files
        raise ImageError(f"is damaged: {_one_line(error)}") from error


def decode_image(path: Path, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Decode an image file to pixels, uint8 [channels, size, size]; see `decode`.

    Raises:
        ImageError: The file cannot be read or decoded; the message does not repeat the path.
    """
    return decode_bytes(read_image(path), spec)


def read_image(path: Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: The file cannot be read, is empty, or is larger than MAX_FILE_BYTES.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise ImageError("is empty")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"is larger than {MAX_FILE_BYTES} bytes")
    return data


def suffix_of(data: bytes) -> str:
    """Return the usual file suffix of an image's format, with the dot; only the header is read.

    Raises:
        ImageError: The data is in none of FORMATS.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _SUFFIXES[image.format or ""]
    except Exception as error:  # as in `decode`
        raise ImageError(f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error


def normalize(images: Tensor, spec: InputSpec) -> Tensor:
    """Compute (images / 255 - mean) / std with the arithmetic of torchvision's ToTensor and Normalize.

    Args:
        images: Pixels, uint8 [batch, channels, size, size]. Not modified.
        spec: Specification that has the mean and std of each channel.

    Returns:
        Normalized images, float32 [batch, channels, size, size], contiguous.
    """
    mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(mean).div_(std)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to 8-bit `mode`; Pillow alone would clip 16-bit samples and warn about palettes with alpha."""
    if image.mode.startswith("I"):  # 16-bit grayscale PNG: I;16, or I in older Pillow
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _crop(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Scale the shorter side to `spec.resize`, then crop the central square of side `spec.size`."""
    width, height = image.size
    short = min(width, height)
    wide, high = (spec.resize if side == short else int(spec.resize * side / short) for side in (width, height))
    _check_pixels(wide, high)  # a 1 x 10,000,000 strip is small until its shorter side is scaled
    if (wide, high) != (width, height):
        # Resizing only the crop (`box`) would save little and differ by one level: Pillow stores boxes as float32.
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (round((side - spec.size) / 2.0) for side in (wide, high))
    return image.crop((left, top, left + spec.size, top + spec.size))


def _letterbox(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Scale the longer side to `spec.size` and center the image in a gray square."""
    box = Letterbox(*image.size, spec.size)
    if box.inner != image.size:
        image = image.resize(box.inner, Image.Resampling.BILINEAR)
    square = Image.new(image.mode, (spec.size, spec.size), (BORDER,) * spec.channels if spec.channels > 1 else BORDER)
    square.paste(image, box.corner)
    return square


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"needs {width} x {height} pixels; at most {MAX_PIXELS} are allowed")


def _to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.uint8)
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.array(channels_first, order="C")  # always a copy, because Pillow's own memory is read-only


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
