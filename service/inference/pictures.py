"""A detector's answer as a picture: the image that was sent, with the boxes, names and scores drawn on it."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import ImageDraw, ImageFont

from edged.calibration.images import decode_upright
from edged.errors import ImageError
from service.inference.responses import OutputTensor
from service.ipc.messages import RequestError

Color = tuple[int, int, int]

_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_TURN = 0.381966  # of the color wheel, from one class to the next: the golden angle keeps neighbors apart
_BRIGHT = 140  # luminance, of 255, from which black text is easier to read than white
# Options of Pillow. PNG's usual compression takes seconds for a photo.
_SAVING: Mapping[str, Mapping[str, Any]] = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 1}}


def draw_boxes(file: bytes, outputs: Sequence[OutputTensor], format_: str) -> bytes:
    """Draw the boxes of one image on it.

    Args:
        file: The encoded image. One of more than 64 megapixels is drawn as its decoder reduces it.
        outputs: "boxes" in pixels of the upright image, "scores", "class_ids" and "names", by descending score.
        format_: "JPEG" or "PNG".

    Returns:
        The encoded picture, upright and without the metadata of the image.

    Raises:
        RequestError: The image cannot be decoded.
    """
    try:
        image, width = decode_upright(file)
    except ImageError as error:
        raise RequestError(f"image 0 {error}") from None
    found: dict[str, list[Any]] = {output.name: output.data for output in outputs}
    scale = image.width / width
    corners = [value * scale for value in found["boxes"]]
    draw, pen = ImageDraw.Draw(image), _Pen(image.size)
    # The highest score is drawn last, on top of the others.
    for index in reversed(range(len(found["scores"]))):
        text = f"{found['names'][index]} {found['scores'][index]:.2f}"
        pen.draw(draw, corners[4 * index : 4 * index + 4], text, color_of(found["class_ids"][index]))
    encoded = io.BytesIO()
    image.save(encoded, format_, **_SAVING[format_])
    return encoded.getvalue()


def color_of(number: int) -> Color:
    """Return the color of a class, the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb(number * _TURN % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


class _Pen:
    """Draws boxes and texts in sizes that suit a picture.

    Args:
        size: Width and height of the picture in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._line = max(1, round(max(size) / 320))
        self._font = _font(max(10, round(max(size) / 50)))

    def draw(self, draw: ImageDraw.ImageDraw, box: Sequence[float], text: str, color: Color) -> None:
        """Draw the outline of a box [x1, y1, x2, y2], and a text above it, or in it where there is no room above."""
        left, top, right, bottom = box
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=self._line)
        wide, high = self._extent(draw, text)
        x = max(0.0, min(left, self._size[0] - wide))
        y = top - high if top >= high else top
        draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        fill = _BLACK if luminance >= _BRIGHT else _WHITE
        draw.text((x + self._line, y), self._drawable(text), fill, self._font)

    def _extent(self, draw: ImageDraw.ImageDraw, text: str) -> tuple[int, int]:
        """Return the width and height of a text with its margins in pixels."""
        # Of letters that go far up and down, so that all texts are as high.
        _, _, _, high = draw.textbbox((0, 0), "Ågjy", self._font)
        return round(draw.textlength(self._drawable(text), self._font)) + 2 * self._line, round(high) + self._line

    def _drawable(self, text: str) -> str:
        if isinstance(self._font, ImageFont.FreeTypeFont):
            return text
        return text.encode("latin-1", "replace").decode("latin-1")  # all that Pillow's bitmap font has


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font; without FreeType that of one size."""
    try:
        return ImageFont.load_default(size)
    except ImportError:
        return ImageFont.load_default()
