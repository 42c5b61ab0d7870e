"""Boxes are drawn where they are, in the colors of their classes, on the image as it was sent."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFont

from edged.calibration import images
from service.inference import pictures
from service.inference.pictures import color_of, draw_boxes
from service.inference.responses import OutputTensor, float_output
from service.ipc.messages import RequestError

GRAY = 90


def photo(width: int, height: int, kind: str = "PNG", **options: Any) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), (GRAY,) * 3).save(encoded, kind, **options)
    return encoded.getvalue()


def found(*boxes: tuple[float, float, float, float], names: tuple[str, ...] = ("cat", "dog")) -> list[OutputTensor]:
    count = len(boxes)
    return [
        float_output("boxes", np.array(boxes, np.float32).reshape(count, 4)),
        float_output("scores", np.linspace(0.9, 0.5, count, dtype=np.float32)),
        OutputTensor("class_ids", "INT64", [count], list(range(count))),
        OutputTensor("names", "BYTES", [count], list(names[:count])),
        OutputTensor("counts", "INT64", [1], [count]),
    ]


def drawn(file: bytes, outputs: list[OutputTensor], kind: str = "PNG") -> npt.NDArray[np.int16]:
    picture = Image.open(io.BytesIO(draw_boxes(file, outputs, kind)))
    assert (picture.format, picture.mode) == (kind, "RGB")
    return np.asarray(picture).astype(np.int16)


def test_the_outlines_are_at_the_boxes() -> None:
    pixels = drawn(photo(640, 480), found((100, 200, 300, 400), (400, 100, 600, 200)))
    assert pixels.shape == (480, 640, 3)
    for (left, top, right, bottom), number in (((100, 200, 300, 400), 0), ((400, 100, 600, 200), 1)):
        for x, y in ((left, bottom - 9), (right, top + 9), (left + 9, bottom), (right - 9, bottom), (right - 9, top)):
            assert tuple(pixels[y, x]) == color_of(number)
        assert (pixels[(top + bottom) // 2, (left + right) // 2] == GRAY).all()
        assert (pixels[bottom + 3, left : right + 1] == GRAY).all()
    of_text = pixels[200 - 8 : 200, 100:130]  # above the first box
    assert {tuple(pixel) for pixel in of_text.reshape(-1, 3)} >= {color_of(0)}
    assert (pixels[:60] == GRAY).all()


def test_a_picture_without_boxes_is_the_image() -> None:
    assert (drawn(photo(64, 48), found()) == GRAY).all()


def test_texts_stay_within_the_picture() -> None:
    pixels = drawn(photo(300, 200), found((250, 0, 299, 50), names=("a very long name",)))
    assert tuple(pixels[2, 200]) != (GRAY,) * 3  # the text moved to the left, and into the box
    assert tuple(pixels[49, 290]) == color_of(0) or tuple(pixels[50, 290]) == color_of(0)


def test_an_image_is_turned_as_its_boxes_are() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    pixels = drawn(photo(480, 640, "JPEG", exif=exif), found((100, 200, 300, 400)), "JPEG")
    assert pixels.shape == (480, 640, 3)
    assert np.abs(pixels[300, 100] - color_of(0)).max() < 60  # JPEG is not exact


def test_a_large_jpeg_is_drawn_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 640 * 480 // 4)
    pixels = drawn(photo(640, 480, "JPEG"), found((100, 200, 300, 400)))
    assert pixels.shape == (240, 320, 3)
    assert tuple(pixels[150, 50]) == color_of(0)


def test_a_mode_that_jpeg_lacks_is_converted() -> None:
    encoded = io.BytesIO()
    Image.new("RGBA", (64, 48), (GRAY, GRAY, GRAY, 0)).save(encoded, "PNG")
    assert drawn(encoded.getvalue(), found(), "JPEG").shape == (48, 64, 3)


def test_a_damaged_image_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^image 0 is damaged"):
        draw_boxes(photo(640, 480)[:200], found(), "PNG")


def test_colors_of_neighbors_differ() -> None:
    colors = np.array([color_of(number) for number in range(80)], int)
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 150
    assert color_of(3) == color_of(3)


def test_names_are_drawn_without_freetype(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageFont.load_default_imagefont()
    monkeypatch.setattr(pictures, "_font", lambda size: plain)
    pixels = drawn(photo(300, 200), found((50, 50, 200, 150), names=("猫 cat",)))
    assert tuple(pixels[150, 100]) == color_of(0)
