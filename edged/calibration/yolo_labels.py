"""Labels of a detector's images: YOLO text files with one line per box, read as YOLOv5 trains on them.

<class> <x center> <y center> <width> <height>      as shares of the image's sides; or
<class> <x> <y> <x> <y> <x> <y> ...                 an outline, whose extent is the box

Boxes over the edge of the image are clipped, and equal lines count once. A line that cannot be read leaves its image
out of everything that is measured with labels, as it leaves it out of training. YOLOv5 also leaves out an image with a
center or a side beyond 0 to 1; here such a box is clipped, unless its numbers are as large as pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edged.calibration.folder import label_path
from edged.errors import CalibrationError
from edged.file_kind import FILE, kind_of

MAX_LABEL_BYTES = 1 << 20
MAX_BOXES = 10_000
_LEAST, _MOST = -1.0, 2.0  # shares; numbers beyond are pixels, or damaged
_ROUNDING = 1e-6  # how far a box may extend without being called clipped
_NAMED = 3
CLIPPED, OUTSIDE, REPEATED, OUTLINES = "clipped", "outside", "repeated", "outlines"
_REPAIRS = {  # for one, for several
    CLIPPED: ("box over the edge is clipped", "boxes over the edge are clipped"),
    OUTSIDE: ("box outside of the image does not count", "boxes outside of the image do not count"),
    REPEATED: ("repeated line counts once", "repeated lines count once"),
    OUTLINES: ("outline became a box", "outlines became boxes"),
}


@dataclass(frozen=True)
class Boxes:
    """The labeled boxes of one image.

    Attributes:
        boxes: Boxes x1, y1, x2, y2 as shares of the image's width and height, float32 [n, 4].
        classes: Class index of each box, int64 [n].
        lines: Line number of each box in the label file, from 1.
        repairs: Line numbers of what was repaired, by CLIPPED, OUTSIDE, REPEATED or OUTLINES.
    """

    boxes: Tensor
    classes: Tensor
    lines: tuple[int, ...] = ()
    repairs: dict[str, list[int]] = field(default_factory=dict)

    def in_pixels(self, width: int, height: int) -> Tensor:
        """Convert the boxes to pixels of an image of this size, float32 [n, 4]."""
        return self.boxes * torch.tensor((width, height) * 2, dtype=torch.float32)


@dataclass(frozen=True)
class LabelSet:
    """The labels of several images.

    Attributes:
        boxes: Boxes of each image; None for an image that is left out because of its labels.
        names: Name of each image's label file, with the name of its folder.
        errors: What is wrong with the labels of each image that is left out, with file and line.
    """

    boxes: list[Boxes | None]
    names: list[str]
    errors: list[str]

    def notes(self) -> list[str]:
        """Return a line for the images that are left out, and one for the repairs, each with counts."""
        found = []
        if self.errors:
            more = f"; and {len(self.errors) - _NAMED} more" if len(self.errors) > _NAMED else ""
            named = "; ".join(self.errors[:_NAMED])
            counted = _counted(len(self.errors), "image is left out for its", "images are left out for their")
            found.append(f"{counted} labels: {named}{more}")
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        for name, boxes in zip(self.names, self.boxes, strict=True):
            for repair, lines in boxes.repairs.items() if boxes is not None else ():
                counts[repair] += len(lines)
                first.setdefault(repair, f"{name}, line {lines[0]}")
        parts = [
            f"{_counted(counts[key], *text)} (first: {first[key]})" for key, text in _REPAIRS.items() if key in counts
        ]
        return [*found, *(["; ".join(parts)] if parts else [])]

    def of_model(self, classes: int) -> LabelSet:
        """Return the labels without the images that hold a class which a model lacks, where these are few.

        Where they are more than one in ten, the images are labeled for another model, and all labels are returned.

        Args:
            classes: Number of the model's classes.
        """
        wrong: dict[int, str] = {}
        for image, (name, boxes) in enumerate(zip(self.names, self.boxes, strict=True)):
            for line, number in zip(boxes.lines, boxes.classes.tolist(), strict=True) if boxes is not None else ():
                if number >= classes and image not in wrong:
                    wrong[image] = (
                        f"{name}, line {line}: class {number} is none of the model's, which are 0 to {classes - 1}"
                    )
        labeled = sum(boxes is not None and len(boxes.classes) > 0 for boxes in self.boxes)
        if not wrong or 10 * len(wrong) > labeled:
            return self
        boxes_left = [None if image in wrong else boxes for image, boxes in enumerate(self.boxes)]
        return LabelSet(boxes_left, self.names, [*wrong.values(), *self.errors])

    def misfit(self, classes: int) -> str | None:
        """Describe the boxes of classes that a model lacks, in a line; None if there are none.

        Args:
            classes: Number of the model's classes.
        """
        wrong = [
            (number, f"{name}, line {boxes.lines[index]}")
            for name, boxes in zip(self.names, self.boxes, strict=True)
            if boxes is not None
            for index, number in enumerate(boxes.classes.tolist())
            if number >= classes
        ]
        if not wrong:
            return None
        number, place = wrong[0]
        files = len({place.rpartition(", line ")[0] for _, place in wrong})
        counted = f"{_counted(len(wrong), 'box', 'boxes')} in {_counted(files, 'file', 'files')}"
        return (
            f"{counted} of classes that the model lacks, such as class {number} in {place};"
            f" the model has the classes 0 to {classes - 1}"
        )

    def __bool__(self) -> bool:
        """Return whether there is a labeled box."""
        return any(boxes is not None and len(boxes.classes) for boxes in self.boxes)


def read_labels(folder: Path, files: Sequence[str]) -> LabelSet | None:
    """Read the labels of images.

    An image without a label file has no boxes, as in training.

    Args:
        folder: Folder of the images.
        files: Paths of the images relative to the folder.

    Returns:
        The labels, or None if no image has a label file.
    """
    paths = [label_path(folder / file) for file in files]
    found = [kind_of(path) == FILE for path in paths]
    if not any(found):
        return None
    names = [name if name.isprintable() else repr(name) for name in ("/".join(path.parts[-2:]) for path in paths)]
    boxes: list[Boxes | None] = []
    errors = []
    for path, name, there in zip(paths, names, found, strict=True):
        try:
            boxes.append(parse_labels(_read(path, name), name) if there else _boxes([]))
        except CalibrationError as error:
            boxes.append(None)
            errors.append(str(error))
    return LabelSet(boxes, names, errors)


def parse_labels(text: str, name: str) -> Boxes:
    """Parse the boxes of one label file.

    Args:
        text: Contents of the file.
        name: Name of the file for error messages.

    Raises:
        CalibrationError: A line is not a box; the message has its number and class.
    """
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > MAX_BOXES:
        raise CalibrationError(f"{name} has {len(lines)} boxes; at most {MAX_BOXES} are allowed")
    rows: dict[_Row, int] = {}
    repairs: dict[str, list[int]] = {}
    for number, fields in lines:
        row = _box(fields, f"{name}, line {number}")
        if len(fields) > 5:
            repairs.setdefault(OUTLINES, []).append(number)
        if row in rows:
            repairs.setdefault(REPEATED, []).append(number)
        rows.setdefault(row, number)
    return _boxes(list(_clipped(rows, repairs)), repairs)


_Sides = tuple[float, float, float, float]
_Row = tuple[int, _Sides]


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABEL_BYTES + 1)
    except OSError as error:
        raise CalibrationError(f"{name} cannot be read: {error.strerror}; make it readable") from error
    if len(data) > MAX_LABEL_BYTES:
        raise CalibrationError(f"{name} is larger than {MAX_LABEL_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CalibrationError(f"{name} is not text; give one line '<class> x y w h' per box") from None


def _box(fields: Sequence[str], place: str) -> _Row:
    """Return the class and the sides x1, y1, x2, y2 of one line, not yet clipped."""
    try:
        label, *values = (float(field) for field in fields)
    except ValueError:
        raise CalibrationError(f"{place}: a field is not a number; give '<class> x y w h'") from None
    if not (math.isfinite(label) and label == int(label) and 0 <= label < 1 << 31):
        raise CalibrationError(f"{place}: class {fields[0][:20]!r} is not a class index; give an integer from 0")
    place = f"{place}, class {int(label)}"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        hint = "; is the last one a confidence?" if len(values) == 5 else ""
        raise CalibrationError(f"{place}: {len(fields)} numbers; give 5, or a class and at least 3 points{hint}")
    if not all(_LEAST <= value <= _MOST for value in values):
        raise CalibrationError(f"{place}: the box extends far beyond the image; give shares of its sides, 0 to 1")
    if len(values) > 4:
        return int(label), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    x, y, width, height = values
    if width < 0 or height < 0:
        raise CalibrationError(f"{place}: the box has a negative side; give '<class> x y w h'")
    return int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _clipped(rows: dict[_Row, int], repairs: dict[str, list[int]]) -> Iterator[tuple[_Row, int]]:
    """Yield the rows within the image, with their line numbers; what was changed is added to `repairs`."""
    for (label, sides), number in rows.items():
        x1, y1, x2, y2 = (min(max(side, 0.0), 1.0) for side in sides)
        edges = ((x1, x2, sides[0], sides[2]), (y1, y2, sides[1], sides[3]))
        if any(last < 0 or first > 1 or (low == high and first < last) for low, high, first, last in edges):
            repairs.setdefault(OUTSIDE, []).append(number)
            continue
        if min(sides) < -_ROUNDING or max(sides) > 1 + _ROUNDING:
            repairs.setdefault(CLIPPED, []).append(number)
        yield (label, (x1, y1, x2, y2)), number


def _boxes(entries: Sequence[tuple[_Row, int]], repairs: dict[str, list[int]] | None = None) -> Boxes:
    sides = torch.tensor([box for (_, box), _ in entries], dtype=torch.float32).reshape(-1, 4)
    classes = torch.tensor([label for (label, _), _ in entries], dtype=torch.int64)
    return Boxes(sides, classes, tuple(number for _, number in entries), repairs or {})


def _counted(count: int, one: str, several: str) -> str:
    """Return a number with what it counts."""
    return f"{count} {one if count == 1 else several}"
