"""A YOLOv5 network as data: the checked rows of its yaml, and everything else needed to rebuild and decode it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edged.errors import ArchitectureError
from edged.models.pickle_scan import quoted
from edged.models.yolov5.arguments import BLOCKS, Argument, checked_arguments

MAX_ROWS = 200
MAX_REPEATS = 100
MAX_CLASSES = 10_000
MAX_NAME_LENGTH = 200
MAX_MULTIPLE = 8.0
MAX_LEVELS, MAX_ANCHORS = 8, 32
DEFAULT_ACTIVATION = "nn.SiLU()"
_ACTIVATION = re.compile(
    r"(?:torch\.)?nn\.(SiLU|ReLU|Hardswish|LeakyReLU)"
    r"\((?:inplace=True|(?:negative_slope=)?(\d?\.\d+))?(?:, *inplace=True)?\)"
)
_TOO_LARGE = 1 << 62  # of a whole number: Python refuses to write out the largest ones, and a float cannot hold them
_INDEX = re.compile(r"[0-9]{1,9}")  # of a class
Anchors = tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True)
class Row:
    """One row of the yaml.

    Attributes:
        sources: Numbers of the rows that it reads; -1 is the image.
        repeats: Repetitions of the block, before the depth multiple.
        block: Name of the block, one of `BLOCKS`.
        arguments: Arguments of the block, as in the yaml; channels before the width multiple.
    """

    sources: tuple[int, ...]
    repeats: int
    block: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Shape:
    """The shape of a row's output: its channels, and its stride in pixels of the input."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Plan:
    """A detector without its weights.

    Attributes:
        depth: Factor of the repeats (depth_multiple).
        width: Factor of the channels (width_multiple).
        rows: Rows of backbone and head, in order; the last is Detect.
        anchors: Width and height in pixels of each anchor of each level.
        names: Names of the classes.
        activation: Activation after each convolution, as the yaml spells it, such as "nn.LeakyReLU(0.1)".
    """

    depth: float
    width: float
    rows: tuple[Row, ...]
    anchors: Anchors
    names: tuple[str, ...]
    activation: str = DEFAULT_ACTIVATION

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            if not 0 < getattr(self, name) <= MAX_MULTIPLE:
                raise ArchitectureError(f"{name}_multiple has value {getattr(self, name)!r}; it must be 0 to 8")
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ArchitectureError(f"the detector has {len(self.names)} classes; it must be 1 to {MAX_CLASSES}")
        detects = [index for index, row in enumerate(self.rows) if row.block == "Detect"]
        if detects != [len(self.rows) - 1]:
            raise ArchitectureError(f"the yaml has Detect in rows {detects} of {len(self.rows)}; it must be the last")
        if len(self.anchors) != len(self.rows[-1].sources) or len({len(level) for level in self.anchors}) != 1:
            raise ArchitectureError(
                f"the anchors are for {len(self.anchors)} levels, Detect reads {len(self.rows[-1].sources)};"
                " every level needs the same number of anchors"
            )

    @property
    def outputs_per_anchor(self) -> int:
        """Number of values per anchor: box, objectness and classes."""
        return 5 + len(self.names)

    def strides(self, in_channels: int = 3) -> tuple[int, ...]:
        """Return the stride of each level, in pixels per cell."""
        shapes = self.shapes(in_channels)
        return tuple(shapes[source].stride for source in self.rows[-1].sources)

    def repeats(self, row: Row) -> int:
        """Return the repetitions of a row's block, with the depth multiple applied."""
        return max(round(row.repeats * self.depth), 1) if row.repeats > 1 else row.repeats

    def channels(self, row: Row) -> int:
        """Return the output channels of a row whose first argument names them, with the width multiple applied."""
        asked = row.arguments[0]
        assert isinstance(asked, int)  # noqa: S101 - checked_arguments saw to it
        if asked == len(self.anchors[0]) * self.outputs_per_anchor:
            return asked  # as in YOLOv5, which takes a row as wide as a head for one
        return math.ceil(asked * self.width / 8) * 8

    def shapes(self, in_channels: int = 3) -> list[Shape]:
        """Return the shape of each row's output, without Detect.

        Raises:
            ArchitectureError: Maps of different sizes are joined, or a size is no whole number.
        """
        shapes: list[Shape] = []
        for index, row in enumerate(self.rows[:-1]):
            inputs = [shapes[source] if source >= 0 else Shape(in_channels, 1) for source in row.sources]
            shapes.append(self._shape(index, row, inputs))
        return shapes

    def _shape(self, index: int, row: Row, inputs: Sequence[Shape]) -> Shape:
        stride = inputs[0].stride
        if row.block == "Concat":
            if any(shape.stride != stride for shape in inputs):
                raise ArchitectureError(f"row {index} of the yaml joins maps of strides {[s.stride for s in inputs]}")
            return Shape(sum(shape.channels for shape in inputs), stride)
        if row.block == "nn.Upsample":
            scale = row.arguments[1]
            if not isinstance(scale, int) or stride % scale:
                raise ArchitectureError(f"row {index} of the yaml scales a map of stride {stride} by {scale}")
            return Shape(inputs[0].channels, stride // scale)
        if row.block in ("Conv", "Focus"):
            steps = row.arguments[2] if len(row.arguments) > 2 else 1
            assert isinstance(steps, int)  # noqa: S101 - checked_arguments saw to it
            stride *= steps ** self.repeats(row) * (2 if row.block == "Focus" else 1)
        return Shape(self.channels(row), stride)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the strides are for readers only and follow from the rest."""
        return {
            "depth_multiple": self.depth,
            "width_multiple": self.width,
            "rows": [[list(row.sources), row.repeats, row.block, _listed(row.arguments)] for row in self.rows],
            "anchors": _listed(self.anchors),
            "strides": list(self.strides()),
            "names": list(self.names),
            **({} if self.activation == DEFAULT_ACTIVATION else {"activation": self.activation}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` returns.

        Raises:
            ArchitectureError: A key is missing, unknown, or has an impossible value.
        """
        known = ("depth_multiple", "width_multiple", "rows", "anchors", "strides", "names")
        if different := sorted(set(known) ^ (set(data) - {"activation"})):
            raise ArchitectureError(f"detector has a missing or unknown key {quoted(different[0])}")
        return cls(
            depth=_number("depth_multiple", data["depth_multiple"]),
            width=_number("width_multiple", data["width_multiple"]),
            rows=parse_rows(data["rows"], absolute=True),
            anchors=parse_anchors(data["anchors"]),
            names=parse_names(data["names"]),
            activation=parse_activation(data.get("activation", DEFAULT_ACTIVATION)),
        )


def parse_rows(value: object, *, absolute: bool = False) -> tuple[Row, ...]:
    """Parse the rows of a yaml, each [from, number, block, arguments].

    Args:
        value: Rows as read from the yaml.
        absolute: Whether `from` counts from the start (-1 is the image) rather than, where negative, back from the row.

    Raises:
        ArchitectureError: A row is malformed; the message names it.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ROWS:
        raise ArchitectureError(f"the yaml's rows are {_kind(value)}; give a list of 1 to {MAX_ROWS} rows")
    return tuple(_row(index, entry, absolute) for index, entry in enumerate(value))


def parse_anchors(value: object) -> Anchors:
    """Parse anchors given as nested lists: levels of [width, height] in pixels.

    Raises:
        ArchitectureError: The value has another form, or a side is not positive.
    """
    levels = value if isinstance(value, list) and 1 <= len(value) <= MAX_LEVELS else []
    flat = [side for level in levels if isinstance(level, list) for pair in level for side in _pair(pair)]
    counts = {len(level) for level in levels if isinstance(level, list)}
    if not flat or len(counts) != 1 or counts.pop() > MAX_ANCHORS or not all(0 < side < 1e5 for side in flat):
        raise ArchitectureError(f"the anchors are {_kind(value)} that cannot be; give positive pixels for every level")
    return tuple(tuple(_pair(pair) for pair in level) for level in levels)


def parse_names(value: object) -> tuple[str, ...]:
    """Parse class names given as a list (v6) or as a dict by index (v7).

    Raises:
        ArchitectureError: The value has another form, or a dict lacks an index.
    """
    if isinstance(value, dict):
        if all(isinstance(key, str) and _INDEX.fullmatch(key) for key in value):  # from JSON
            value = {int(key): name for key, name in value.items()}
        if value.keys() != set(range(len(value))):
            raise ArchitectureError("the class names are a dict whose keys are not 0, 1, 2, ...")
        value = [value[index] for index in range(len(value))]
    if not isinstance(value, list | tuple) or len(value) > MAX_CLASSES:
        raise ArchitectureError(f"the class names are {_kind(value)}; give a list or a dict by index")
    if not all(map(_is_name, value)):
        raise ArchitectureError(f"a class name is no text of at most {MAX_NAME_LENGTH} characters")
    return tuple(str(name) for name in value)


def parse_activation(value: object) -> str:
    """Return an activation in edged's spelling.

    Raises:
        ArchitectureError: The activation is unknown.
    """
    match = _ACTIVATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[2] and match[1] != "LeakyReLU"):
        raise ArchitectureError(
            f"its activation is {quoted(value)}; edged knows nn.SiLU(), nn.ReLU(), nn.LeakyReLU(slope) and"
            " nn.Hardswish()"
        )
    return f"nn.LeakyReLU({float(match[2] or 0.01):g})" if match[1] == "LeakyReLU" else f"nn.{match[1]}()"


def _row(index: int, entry: object, absolute: bool) -> Row:
    if not isinstance(entry, list) or len(entry) != 4:
        raise ArchitectureError(
            f"row {index} of the yaml is {_kind(entry)}; it must be [from, number, block, arguments]"
        )
    reads, repeats, block, arguments = entry
    if not isinstance(block, str) or block not in BLOCKS:
        raise ArchitectureError(
            f"row {index} of the yaml has the block {quoted(block)}, which edged does not know; it knows"
            f" {', '.join(BLOCKS)}"
        )
    if type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS:
        raise ArchitectureError(f"row {index} of the yaml repeats its block {quoted(repeats)} times")
    listed = reads if isinstance(reads, list) else [reads]
    if not listed or len(listed) > MAX_LEVELS or any(type(source) is not int for source in listed):
        raise ArchitectureError(f"row {index} of the yaml reads {quoted(reads)}; give the numbers of rows")
    sources = tuple(source if absolute or source >= 0 else index + source for source in listed)
    lowest = -1 if index == 0 or absolute else 0
    if any(not lowest <= source < index for source in sources) or (len(sources) > 1 and block not in _JOINS):
        shown = ", ".join(quoted(source)[1:-1] for source in sources)
        raise ArchitectureError(f"row {index} of the yaml ({block}) cannot read rows [{shown}]")
    return Row(sources, repeats, block, checked_arguments(index, block, arguments))


_JOINS = ("Concat", "Detect")


def _is_name(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) < _TOO_LARGE
    return isinstance(value, str) and len(value) <= MAX_NAME_LENGTH


def _pair(value: object) -> tuple[float, float]:
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return float(value[0]), float(value[1])
    raise ArchitectureError(f"an anchor is {_kind(value)}; give [width, height] in pixels")


def _number(key: str, value: object) -> float:
    if not _is_number(value):
        raise ArchitectureError(f"{key} is {_kind(value)} that cannot be; give a number")
    return float(value)  # type: ignore[arg-type]  # the line above checked it


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _TOO_LARGE)


def _listed(value: object) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
