"""The published networks, n/s/m/l/x and their variants of four levels (n6..x6), without weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from edged.errors import ArchitectureError
from edged.models.names import MULTIPLES, SIZES
from edged.models.yolov5.plan import Plan, Row, parse_anchors, parse_rows

__all__ = ["SIZES", "name_of", "standard"]

_ANCHORS_3 = [
    [[10, 13], [16, 30], [33, 23]],
    [[30, 61], [62, 45], [59, 119]],
    [[116, 90], [156, 198], [373, 326]],
]
_ANCHORS_4 = [
    [[19, 27], [44, 40], [38, 94]],
    [[96, 68], [86, 152], [180, 137]],
    [[140, 301], [303, 264], [238, 542]],
    [[436, 615], [739, 380], [925, 792]],
]


def standard(size: str, names: Sequence[str], *, focus: bool = False) -> Plan:
    """Return the plan of a published network, with COCO's anchors.

    Args:
        size: One of `SIZES`.
        names: Names of the classes.
        focus: Whether it is the network of v5.0, with Focus and SPP, instead of that of v6.0 to v7.0.

    Raises:
        ArchitectureError: There is no such size.
    """
    if size not in SIZES:
        raise ArchitectureError(f"YOLOv5 has no size {size!r}; choose one of {', '.join(SIZES)}")
    depth, width = MULTIPLES[size[0]]
    widths = [128, 256, 512, 768, 1024] if size.endswith("6") else [128, 256, 512, 1024]
    anchors = parse_anchors(_ANCHORS_4 if size.endswith("6") else _ANCHORS_3)
    return Plan(depth, width, parse_rows(_rows(widths, focus)), anchors, tuple(names))


def name_of(plan: Plan) -> str:
    """Return the name of a plan: `yolov5n` etc. if rows and multiples are published ones, otherwise `yolov5`."""
    return _published().get((plan.depth, plan.width, plan.rows), "yolov5")


@functools.cache
def _published() -> Mapping[tuple[float, float, tuple[Row, ...]], str]:
    """Return the name of each published network by its multiples and rows."""
    plans = [(size, standard(size, ("",), focus=focus)) for size in SIZES for focus in (False, True)]
    return {(plan.depth, plan.width, plan.rows): f"yolov5{size}" for size, plan in plans}


def _rows(widths: Sequence[int], focus: bool) -> list[Any]:
    """Return the rows: down the stages of the backbone, up again to the finest level, and down once more."""
    rows: list[Any] = [[-1, 1, "Focus", [64, 3]] if focus else [-1, 1, "Conv", [64, 6, 2, 2]]]
    ends = []  # the last row of each stage
    for width, repeats in zip(widths, [3, 9 if focus else 6, 9, *[3] * (len(widths) - 3)], strict=True):
        rows += [[-1, 1, "Conv", [width, 3, 2]], [-1, repeats, "C3", [width]]]
        ends.append(len(rows) - 1)
    if focus:  # the pooling comes before the last stage's C3
        pools = [5, 9, 13] if len(widths) == 4 else [3, 5, 7]
        rows[-1:] = [[-1, 1, "SPP", [widths[-1], pools]], [-1, 3, "C3", [widths[-1], False]]]
    else:
        rows.append([-1, 1, "SPPF", [widths[-1], 5]])
    lateral = []
    for width, end in zip(widths[-2:0:-1], ends[-2:0:-1], strict=True):
        lateral.append(len(rows))
        rows += [[-1, 1, "Conv", [width, 1, 1]], [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]]
        rows += [[[-1, end], 1, "Concat", [1]], [-1, 3, "C3", [width, False]]]
    levels = [len(rows) - 1]
    # The channels at the end of the way up set the width of the next level: 256 for the finest.
    for width, joined in zip(widths[1:-1], reversed(lateral), strict=True):
        rows += [[-1, 1, "Conv", [width, 3, 2]], [[-1, joined], 1, "Concat", [1]]]
        rows.append([-1, 3, "C3", [widths[widths.index(width) + 1], False]])
        levels.append(len(rows) - 1)
    rows.append([levels, 1, "Detect", ["nc", "anchors"]])
    return rows
