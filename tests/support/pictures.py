"""Small images on disk, made from a seed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 20, width: int = 20, channels: int = 3) -> np.ndarray:
    """Return smooth noise, uint8 [height, width, channels]; it survives JPEG and scaling better than white noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    image = Image.fromarray(coarse if channels == 3 else coarse[..., 0])
    array = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return array.reshape(height, width, channels)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an encoded image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def vast_picture() -> bytes:
    """Return a small file that takes about ten milliseconds to decode."""
    return encode(Image.new("RGB", (3000, 3000)), "PNG")


def write_png(path: Path, seed: int, height: int = 20, width: int = 20) -> None:
    """Write a PNG of `pixels(seed)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height, width)).save(path, "PNG")


def write_folder(folder: Path, classes: int, images: int) -> None:
    """Write `images` PNGs to each of `classes` folders; with 0 classes, to `folder` itself."""
    for seed in range(max(1, classes) * images):
        parent = folder / f"class_{seed % classes}" if classes else folder
        write_png(parent / f"image_{seed:04}.png", seed)


def noise_png(size: int = 6) -> bytes:
    """Return an encoded square of white noise."""
    pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
