"""Boxes that a detector in service finds in images, drawn into the images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from benchmarks.demo.daemon import ask

ASKED, SHOWN = 24, 4
CELL = 560  # side of an image in the sheet, pixels
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


@dataclass(frozen=True)
class Box:
    """One detected object.

    Attributes:
        corners: x1, y1, x2, y2 in pixels of the image.
        score: Confidence, 0 to 1.
        kind: Number of the class.
        name: Name of the class.
    """

    corners: tuple[float, float, float, float]
    score: float
    kind: int
    name: str


def draw_sheet(address: str, model: str, folder: Path, target: Path) -> tuple[int, int]:
    """Send images to a detector and draw those with the most boxes into one sheet.

    Returns:
        Number of images sent and number of boxes found in them.
    """
    paths = sorted(folder.iterdir())[:ASKED]
    found = [(path, see(address, model, path)) for path in paths]
    richest = sorted(found, key=lambda entry: -len(entry[1]))[:SHOWN]
    side = round(SHOWN**0.5) * CELL
    sheet = Image.new("RGB", (side, side), "white")
    for index, (path, boxes) in enumerate(richest):
        row, column = divmod(index, side // CELL)
        picture = ImageOps.contain(draw(path, boxes), (CELL, CELL))
        sheet.paste(picture, (column * CELL, row * CELL))
    sheet.save(target, quality=90)
    return len(paths), sum(len(boxes) for _, boxes in found)


def see(address: str, model: str, path: Path) -> list[Box]:
    """Return the boxes in one image."""
    answer = ask(address, model, [base64.b64encode(path.read_bytes()).decode()])
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    flat = outputs["boxes"]
    corners = [(flat[i], flat[i + 1], flat[i + 2], flat[i + 3]) for i in range(0, len(flat), 4)]
    rest = (outputs[name] for name in ("scores", "class_ids", "names"))
    return [Box(*entry) for entry in zip(corners, *rest, strict=True)]


def draw(path: Path, boxes: Sequence[Box]) -> Image.Image:
    """Return the image with its boxes drawn into it."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for box in reversed(boxes):  # the highest score on top
        color = COLORS[box.kind % len(COLORS)]
        pen.rectangle(box.corners, outline=color, width=3)
        place = (box.corners[0] + 2, max(box.corners[1] - 17, 0))
        text = f"{box.name} {box.score:.2f}"
        pen.rectangle(pen.textbbox(place, text, font=font), fill=color)
        pen.text(place, text, fill="white", font=font)
    return picture
