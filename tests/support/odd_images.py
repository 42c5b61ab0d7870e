"""Images as users have them: every color mode, container and file name that cameras, phones and programs write."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.pictures import encode, pixels

SIDE = 16
COLORS = pixels(3, SIDE, SIDE)
GRAY = pixels(4, SIDE, SIDE, 1)[..., 0]
_GRAY_AS_RGB = np.repeat(GRAY[..., None], 3, 2)
# How each value of the EXIF tag turns the stored pixels upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, 1),
}


@dataclass(frozen=True)
class Odd:
    """One image file.

    Attributes:
        name: Name of the file.
        data: Its contents.
        expected: What it shows, uint8 [SIDE, SIDE, 3].
        tolerance: Largest mean difference of a level, for lossy formats.
    """

    name: str
    data: bytes
    expected: np.ndarray
    tolerance: float = 0.0


def odd_images() -> list[Odd]:
    """Return the images; each name is another one."""
    return [*_jpegs(), *_pngs(), *_webps(), *_bmps(), *_names()]


def write_odd_images(folder: Path) -> dict[str, Odd]:
    """Write the images to a folder; return them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    odd = odd_images()
    for image in odd:
        (folder / image.name).write_bytes(image.data)
    return {image.name: image for image in odd}


def rgb() -> Image.Image:
    """Return COLORS as an image."""
    return Image.fromarray(COLORS)


def oriented(kind: str, orientation: int, **options: object) -> bytes:
    """Return COLORS in a file whose EXIF data say that it has to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(rgb(), kind, exif=exif.tobytes(), **options)


def damaged_exif() -> bytes:
    """Return COLORS in a JPEG whose EXIF data end too early; Pillow warns about it."""
    return encode(rgb(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01", quality=98, subsampling=0)


def mpo() -> bytes:
    """Return a phone's file of two JPEGs, the first with COLORS."""
    buffer = io.BytesIO()
    rgb().save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))], quality=98, subsampling=0)
    return buffer.getvalue()


def _jpegs() -> Iterator[Odd]:
    best: dict[str, object] = {"quality": 98, "subsampling": 0}

    def jpeg(image: Image.Image, **options: object) -> bytes:
        return encode(image, "JPEG", **{**best, **options})

    yield Odd("rgb.jpg", jpeg(rgb()), COLORS, 2)
    yield Odd("subsampled.jpeg", jpeg(rgb(), subsampling=2), COLORS, 9)
    yield Odd("gray.jpg", jpeg(Image.fromarray(GRAY)), _GRAY_AS_RGB, 2)
    yield Odd("cmyk.jpg", jpeg(rgb().convert("CMYK")), COLORS, 3)
    yield Odd("progressive.jpg", jpeg(rgb(), progressive=True), COLORS, 2)
    yield Odd("restart-markers.jpg", jpeg(rgb(), restart_marker_blocks=1), COLORS, 2)
    yield Odd("comment-and-profile.jpg", jpeg(rgb(), comment=b"a\nb", icc_profile=b"not a profile"), COLORS, 2)
    yield Odd("old.jfif", jpeg(rgb()), COLORS, 2)
    yield Odd("old.jpe", jpeg(rgb()), COLORS, 2)
    yield Odd("phone.jpg", mpo(), COLORS, 2)
    yield Odd("drone.MPO", mpo(), COLORS, 2)
    yield Odd("appended-video.jpg", jpeg(rgb()) + b"\0\0\0\x18ftypmp42" + bytes(500), COLORS, 2)
    for orientation, upright in UPRIGHT.items():
        yield Odd(f"exif-{orientation}.jpg", oriented("JPEG", orientation, **best), upright(COLORS), 2)
    yield Odd("exif-9.jpg", oriented("JPEG", 9, **best), COLORS, 2)  # no such value


def _pngs() -> Iterator[Odd]:
    def png(image: Image.Image, **options: object) -> bytes:
        return encode(image, "PNG", **options)

    alpha = Image.fromarray(pixels(6, SIDE, SIDE, 1)[..., 0])
    palette = rgb().quantize(64)
    of_palette = np.asarray(palette.convert("RGB"))
    bits = Image.fromarray(GRAY).point(lambda level: 255 * (level > 127)).convert("1")
    of_bits = np.repeat(np.asarray(bits.convert("L"))[..., None], 3, 2)
    with_alpha, gray_alpha = rgb(), Image.fromarray(GRAY)
    with_alpha.putalpha(alpha)
    gray_alpha.putalpha(alpha)
    yield Odd("rgb.png", png(rgb()), COLORS)
    yield Odd("rgba.png", png(with_alpha), COLORS)
    yield Odd("gray.png", png(Image.fromarray(GRAY)), _GRAY_AS_RGB)
    yield Odd("gray-alpha.png", png(gray_alpha), _GRAY_AS_RGB)
    yield Odd("gray-transparent.png", png(Image.fromarray(GRAY), transparency=7), _GRAY_AS_RGB)
    yield Odd("one-bit.png", png(bits), of_bits)
    yield Odd("palette.png", png(palette), of_palette)
    yield Odd("palette-transparent.png", png(palette, transparency=3), of_palette)
    yield Odd("palette-alphas.png", png(palette, transparency=bytes(range(0, 256, 4))), of_palette)
    yield Odd("16-bit-gray.png", png(Image.fromarray((GRAY.astype(np.uint16) << 8) + 77)), _GRAY_AS_RGB)
    yield Odd("16-bit-rgb.png", _png_of_16_bits(), COLORS)
    yield Odd("animated.png", png(rgb(), save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]), COLORS)
    yield Odd("exif-6.png", oriented("PNG", 6), UPRIGHT[6](COLORS))


def _webps() -> Iterator[Odd]:
    others = [Image.new("RGB", (SIDE, SIDE), color) for color in ("red", "blue")]
    yield Odd("lossless.webp", encode(rgb(), "WEBP", lossless=True), COLORS)
    yield Odd("lossy.webp", encode(rgb(), "WEBP", quality=98), COLORS, 9)
    moving = encode(rgb(), "WEBP", lossless=True, save_all=True, append_images=others)
    yield Odd("animated.webp", moving, COLORS)
    yield Odd("exif-8.webp", oriented("WEBP", 8, lossless=True), UPRIGHT[8](COLORS))


def _bmps() -> Iterator[Odd]:
    palette = rgb().quantize(64)
    yield Odd("rgb.bmp", encode(rgb(), "BMP"), COLORS)
    yield Odd("gray.bmp", encode(Image.fromarray(GRAY), "BMP"), _GRAY_AS_RGB)
    yield Odd("palette.bmp", encode(palette, "BMP"), np.asarray(palette.convert("RGB")))


def _names() -> Iterator[Odd]:
    data = encode(rgb(), "PNG")
    yield Odd("with spaces and 'quotes\".png", data, COLORS)
    yield Odd("Größe 東京 😀.png", data, COLORS)
    yield Odd("new\nline.png", data, COLORS)
    yield Odd("-rf.png", data, COLORS)
    yield Odd("UPPER.PNG", data, COLORS)
    yield Odd("two.dots.jpg.png", data, COLORS)
    yield Odd("x" * 251 + ".png", data, COLORS)
    yield Odd(os.fsdecode(b"not-utf-8-\xff.png"), data, COLORS)
    yield Odd("really-a-jpeg.png", encode(rgb(), "JPEG", quality=98, subsampling=0), COLORS, 2)


def _png_of_16_bits() -> bytes:
    """Return COLORS as the high bytes of a PNG with 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + ((row.astype(">u2") << 8) + 99).astype(">u2").tobytes() for row in COLORS)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
