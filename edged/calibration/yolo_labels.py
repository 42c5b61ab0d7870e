"""Labels of a detector's images: YOLO text files with one line per box.

<class> <x center> <y center> <width> <height>      as shares of the image's sides; or
<class> <x> <y> <x> <y> <x> <y> ...                 an outline, whose extent is the box
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edged.errors import CalibrationError

MAX_LABEL_BYTES = 1 << 20
MAX_BOXES = 10_000
_TOLERANCE = 0.01  # how far a label may extend beyond the image, as a share of its side


@dataclass(frozen=True)
class Boxes:
    """The labeled boxes of one image.

    Attributes:
        boxes: Boxes x1, y1, x2, y2 as shares of the image's width and height, float32 [n, 4].
        classes: Class index of each box, int64 [n].
    """

    boxes: Tensor
    classes: Tensor

    def in_pixels(self, width: int, height: int) -> Tensor:
        """Convert the boxes to pixels of an image of this size, float32 [n, 4]."""
        return self.boxes * torch.tensor((width, height) * 2, dtype=torch.float32)


def label_path(image: Path) -> Path:
    """Return the path of an image's labels: in the folder `labels` for an image under `images`, else next to it."""
    parts = list(image.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_labels(folder: Path, files: Sequence[str]) -> list[Boxes] | None:
    """Read the labels of images.

    An image without a label file has no boxes, as in training.

    Args:
        folder: Folder of the images.
        files: Paths of the images relative to the folder.

    Returns:
        One entry per image, or None if no image has a label file.

    Raises:
        CalibrationError: A label file cannot be read or parsed; the message has its name and line.
    """
    paths = [label_path(folder / file) for file in files]
    found = [path.is_file() for path in paths]
    if not any(found):
        return None
    return [
        parse_labels(_read(path), path.name) if there else _boxes([]) for path, there in zip(paths, found, strict=True)
    ]


def parse_labels(text: str, name: str) -> Boxes:
    """Parse the boxes of one label file.

    Args:
        text: Contents of the file.
        name: Name of the file for error messages.

    Raises:
        CalibrationError: A line is not a box; the message has its number.
    """
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > MAX_BOXES:
        raise CalibrationError(f"labels {name} have {len(lines)} boxes; at most {MAX_BOXES} are allowed")
    return _boxes([_box(fields, f"labels {name}, line {number}") for number, fields in lines])


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABEL_BYTES + 1)
    except OSError as error:
        raise CalibrationError(f"labels {path} cannot be read: {error.strerror}; make them readable") from error
    if len(data) > MAX_LABEL_BYTES:
        raise CalibrationError(f"labels {path} are larger than {MAX_LABEL_BYTES} bytes")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise CalibrationError(f"labels {path} are not ASCII text; give one line '<class> x y w h' per box") from None


def _box(fields: Sequence[str], place: str) -> tuple[int, tuple[float, float, float, float]]:
    try:
        label, *values = (float(field) for field in fields)
    except ValueError:
        raise CalibrationError(f"{place}: a field is not a number; give '<class> x y w h'") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise CalibrationError(f"{place}: {len(fields)} numbers; give 5, or a class and at least 3 points")
    if not (math.isfinite(label) and label == int(label) and 0 <= label < 1 << 31):
        raise CalibrationError(f"{place}: class {fields[0][:20]!r} is not a class index; give an integer from 0")
    if len(values) == 4:
        x, y, width, height = values
        sides = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        sides = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    low, high = -_TOLERANCE, 1 + _TOLERANCE
    if not all(low <= side <= high for side in sides) or sides[0] > sides[2] or sides[1] > sides[3]:
        raise CalibrationError(f"{place}: the box extends beyond the image; give shares of its sides, 0 to 1")
    return int(label), (max(sides[0], 0.0), max(sides[1], 0.0), min(sides[2], 1.0), min(sides[3], 1.0))


def _boxes(entries: Sequence[tuple[int, tuple[float, float, float, float]]]) -> Boxes:
    sides = torch.tensor([box for _, box in entries], dtype=torch.float32).reshape(-1, 4)
    return Boxes(sides, torch.tensor([label for label, _ in entries], dtype=torch.int64))
