"""Decoding of one encoded image to the uint8 pixels of a network input, shared by calibration and serving.

The geometry is that of torchvision's `Resize(resize)` + `CenterCrop(size)` on PIL images with bilinear, antialiased
filtering, or a `Letterbox` for detectors. Images of more than MAX_PIXELS are reduced first, a JPEG while it is decoded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from edged.calibration.formats import FORMATS, NAMES, format_of, other_format_of
from edged.calibration.letterbox import BORDER, Letterbox
from edged.errors import ImageError
from edged.spec import IMAGE_MODES, Fit, InputSpec

MAX_PIXELS = 64 * 2**20  # per decoded image; 256 MiB, because Pillow stores four bytes per RGB pixel
LARGE_PIXELS = 2 * MAX_PIXELS  # per image of the user's own folders; callers decode these one at a time
MAX_JPEG_PIXELS = 8 * MAX_PIXELS  # per JPEG that can be reduced while it is decoded
MAX_FILE_BYTES = 128 * 2**20
_REDUCTIONS = (8, 4, 2)  # of each side, by a JPEG decoder
_OVERSAMPLING = 2  # sides of a reduced JPEG relative to what is needed, so that the filter still decides
_BAND_PIXELS = 2**22  # converted at a time
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = 1
_TURNED = (5, 6, 7, 8)  # its values that exchange width and height

# Opened by their classes and not by Image.open, which warns about large images; the bounds here are edged's own.
_OPENERS: Mapping[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}


class LargeImageError(ImageError):
    """An image has too many pixels."""


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


def decode(data: bytes, spec: InputSpec, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode, turn upright (EXIF), scale and crop or letterbox one encoded image.

    Grayscale, palette, CMYK and 16-bit images become RGB (or grayscale for a one-channel spec). Alpha is dropped, as
    torchvision's ImageFolder does when it reads training images, unless the spec has a channel for it; an image without
    alpha is opaque. An animation or an MPO gives its first image.

    Args:
        data: Contents of a JPEG, PNG, WebP or BMP file.
        spec: Size, fit and channels of the network input; mean and std are ignored.
        max_pixels: Most pixels of an image that has to be decoded whole. A JPEG with one scan may have MAX_JPEG_PIXELS,
            because its decoder reduces it.

    Raises:
        LargeImageError: The image has too many pixels.
        ImageError: `data` is in no supported format, or is damaged.
    """
    with _opened(data, spec, max_pixels) as (image, size):
        return _fitted(image, size, spec)


def decode_upright(data: bytes) -> tuple[Image.Image, int]:
    """Decode one encoded image and turn it upright (EXIF), as `decode` does before it scales it.

    Args:
        data: Contents of a JPEG, PNG, WebP or BMP file.

    Returns:
        The image as RGB, and the width of the upright image in pixels. The former is smaller if the decoder of a large
        JPEG reduced it to MAX_PIXELS.

    Raises:
        LargeImageError: The image has too many pixels.
        ImageError: `data` is in no supported format, or is damaged.
    """
    with _opened(data, None, MAX_PIXELS) as (image, (width, height)):
        image.load()
        turned = image.getexif().get(_ORIENTATION, _UPRIGHT) in _TURNED
        upright = ImageOps.exif_transpose(image) or image
        rgb = _to_mode(upright, "RGB")
        rgb = rgb.copy() if rgb is image else rgb  # which is closed
        rgb.info = {}
        return rgb, height if turned else width


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
    """Return the usual file suffix of an image's format, with the dot; only the first bytes are read.

    Raises:
        ImageError: The data is in none of FORMATS.
    """
    return FORMATS[_format_of(data)][0]


def normalize(images: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.float32]:
    """Compute (images / 255 - mean) / std with the arithmetic of torchvision's ToTensor and Normalize.

    Args:
        images: Pixels, uint8 [batch, channels, size, size]. Not modified.
        spec: Specification that has the mean and std of each channel.

    Returns:
        Normalized images, float32 [batch, channels, size, size], contiguous.
    """
    mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (spec.mean, spec.std))
    normalized = images.astype(np.float32, order="C")
    normalized /= np.float32(255)
    normalized -= mean
    normalized /= std
    return normalized


def _format_of(data: bytes) -> str:
    if (found := format_of(data)) is not None:
        return found
    other = other_format_of(data)
    raise ImageError(f"is not a {NAMES} image" + (f", but {other}" if other else ""))


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header of an encoded image.

    Raises:
        ImageError: The data is in none of FORMATS.
    """
    return _OPENERS[_format_of(data)](io.BytesIO(data))


@contextmanager
def _opened(
    data: bytes, spec: InputSpec | None, max_pixels: int
) -> Iterator[tuple[ImageFile.ImageFile, tuple[int, int]]]:
    """Open an encoded image within its bounds; yields it, reduced if it is large, and its size before that.

    Args:
        data: Contents of the file.
        spec: Input that the image is for; None to reduce it no more than its bounds need.
        max_pixels: Most pixels of an image that has to be decoded whole.

    Raises:
        ImageError: It cannot be decoded, here or in the body of the `with` statement.
    """
    try:
        with _open(data) as image:
            width, height = image.size
            if width * height > MAX_PIXELS and not _reduce_while_decoding(image, data, spec):
                _check_pixels(width, height, max_pixels)
            yield image, (width, height)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise errors of any type for damaged files
        raise ImageError(f"is damaged: {_one_line(error)}") from error


def _reduce_while_decoding(image: ImageFile.ImageFile, data: bytes, spec: InputSpec | None) -> bool:
    """Have the decoder of a large JPEG reduce it by 2, 4 or 8; return False if the image has to be decoded whole.

    Raises:
        LargeImageError: The JPEG has more than MAX_JPEG_PIXELS.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or not _has_one_scan(image, data):
        return False
    width, height = image.size
    _check_pixels(width, height, MAX_JPEG_PIXELS)
    fitting = [by for by in _REDUCTIONS if width * height <= MAX_PIXELS * by**2]
    by = fitting[-1]
    if spec is not None:
        side, needed = (max, spec.size) if spec.fit is Fit.LETTERBOX else (min, spec.resize)
        by = next((by for by in fitting if side(width, height) >= by * needed * _OVERSAMPLING), by)
    image.draft(None, (max(1, width // by), max(1, height // by)))
    return image.width * image.height <= MAX_PIXELS


def _has_one_scan(image: JpegImagePlugin.JpegImageFile, data: bytes) -> bool:
    """Return whether a JPEG's first scan has all of it; otherwise the decoder keeps the coefficients of all pixels."""
    assert image.fp is not None  # noqa: S101 - the image is not loaded yet
    end, components = image.fp.tell(), int(image.layers)  # the header has been read, up to the first scan's data
    length = 6 + 2 * components
    scan = data[max(0, end - length - 2) : end]
    return not image.info.get("progressive") and scan[:5] == b"\xff\xda" + bytes((0, length, components))


def _fitted(image: ImageFile.ImageFile, original: tuple[int, int], spec: InputSpec) -> Decoded:
    """Decode an opened image whose size was `original` before it was reduced."""
    image.load()
    mode = IMAGE_MODES[spec.channels]
    orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
    # Converting or turning a copy would double the memory.
    copied = image.mode != mode or orientation != _UPRIGHT
    whole = _reduced(image, mode) if copied and image.width * image.height > MAX_PIXELS else image
    if orientation in _TURNED:
        original = original[::-1]
    ImageOps.exif_transpose(whole, in_place=True)
    fit = _letterbox if spec.fit is Fit.LETTERBOX else _crop
    return Decoded(_to_array(fit(_to_mode(whole, mode), original, spec)), *original)


def _reduced(image: Image.Image, mode: str) -> Image.Image:
    """Convert a decoded image to `mode` and reduce it to MAX_PIXELS by averaging squares, a band at a time."""
    width, height = image.size
    by = math.ceil(math.sqrt(width * height / MAX_PIXELS))
    rows = by * max(1, _BAND_PIXELS // (width * by))
    reduced = Image.new(mode, (-(-width // by), -(-height // by)))
    for top in range(0, height, rows):
        band = _to_mode(image.crop((0, top, width, min(height, top + rows))), mode)
        reduced.paste(band.reduce(by), (0, top // by))
    reduced.info = image.info  # its EXIF data say which side is up
    return reduced


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to 8-bit `mode`; Pillow alone would clip 16-bit samples and warn about palettes with alpha."""
    if image.mode.startswith("I"):  # 16-bit grayscale PNG: I;16, or I in older Pillow
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _crop(image: Image.Image, _: tuple[int, int], spec: InputSpec) -> Image.Image:
    """Scale the shorter side to `spec.resize`, then crop the central square of side `spec.size`."""
    width, height = image.size
    short = min(width, height)
    wide, high = (spec.resize if side == short else int(spec.resize * side / short) for side in (width, height))
    left, top = (round((side - spec.size) / 2.0) for side in (wide, high))
    if wide * high > MAX_PIXELS:  # a 1 x 10,000,000 strip is small until its shorter side is scaled
        across, down = width / wide, height / high
        box = (left * across, top * down, (left + spec.size) * across, (top + spec.size) * down)
        return image.resize((spec.size, spec.size), Image.Resampling.BILINEAR, box=box)
    if (wide, high) != (width, height):
        # Resizing only the crop (`box`) would save little and differ by one level: Pillow stores boxes as float32.
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + spec.size, top + spec.size))


def _letterbox(image: Image.Image, original: tuple[int, int], spec: InputSpec) -> Image.Image:
    """Scale the longer side to `spec.size` and center the image, whose size was `original`, in a gray square."""
    box = Letterbox(*original, spec.size)
    if box.inner != image.size:
        image = image.resize(box.inner, Image.Resampling.BILINEAR)
    square = Image.new(image.mode, (spec.size, spec.size), (BORDER,) * spec.channels if spec.channels > 1 else BORDER)
    square.paste(image, box.corner)
    return square


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise LargeImageError(f"has too many pixels, {width} x {height}; at most {most} are allowed")


def _to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.uint8)
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.array(channels_first, order="C")  # always a copy, because Pillow's own memory is read-only


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
