"""The picture of a comparison: accuracy against seconds, with a panel for each number of bits, as SVG. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from service.comparison.differences import metric_of
from service.comparison.job import FULL_PRECISION
from service.reporting.facts import NAMES

_WIDTH, _LEFT, _RIGHT = 760.0, 64.0, 120.0
_TOP, _PANEL, _GAP, _BOTTOM = 54.0, 230.0, 44.0, 44.0
_COLORS = ("#2f7ed8", "#e08214", "#d6456b", "#1b9e77", "#8a5cc2", "#8a8a8a", "#b07aa1")
_LINE, _LETTER, _MARK = 12.0, 6.3, 7.0  # height of a label, width of one of its letters, distance to its point
_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f } .title { font-size: 14px; font-weight: 600 }
.page { fill: #ffffff } .grid { stroke: #d0d7de } .full { stroke: #57606a; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #30363d } }
"""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Scale:
    """The place of values between two ends of an axis.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Place of the lowest value.
        end: Place of the highest value.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class _Box:
    """A rectangle that a point or a label covers."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: _Box) -> bool:
        """Return whether the two overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def draw(result: Mapping[str, Any]) -> str:
    """Return the picture: a panel for each number of bits, a point for each method, seconds on a logarithmic axis.

    Methods that lose far more than the others of their panel are at its lower edge, with their score.
    """
    metric = metric_of(result)
    full: float = result["rows"][0]["score"][metric]
    rows = [row for row in result["rows"][1:] if "error" not in row and row["method"] != FULL_PRECISION]
    logarithms = [_logarithm(row["seconds"]) for row in rows] or [0.0]
    first, last = math.floor(min(logarithms)), math.ceil(max(logarithms) + 1e-9)
    x = _Scale(first, last, _LEFT, _WIDTH - _RIGHT)
    widths = sorted({row["bits"] for row in rows}, reverse=True)
    parts = _frame(NAMES[metric], len(widths))
    for number, bits in enumerate(widths):
        top = _TOP + number * (_PANEL + _GAP)
        points = [
            (x(_logarithm(row["seconds"])), row["score"][metric], row["method"]) for row in rows if row["bits"] == bits
        ]
        parts += _seconds(range(first, last + 1), x, top)
        parts += _panel(points, full, top, _COLORS[number % len(_COLORS)], f"{bits} bits")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _logarithm(seconds: float) -> float:
    return math.log10(max(seconds, 0.01))


def _frame(metric: str, panels: int) -> list[str]:
    height = _TOP + panels * (_PANEL + _GAP) + _BOTTOM - _GAP
    middle = (_TOP + height - _BOTTOM) / 2
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img">',
        f"<title>{metric} against the seconds of quantizing</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH:.0f}" height="{height:.0f}"/>',
        f'<text class="title" x="{_LEFT}" y="20">{metric} in percent against the seconds of quantizing</text>',
        f'<text text-anchor="middle" x="16" y="{middle}" transform="rotate(-90 16 {middle})">{metric}, percent</text>',
        f'<text text-anchor="middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{height - 8:.0f}">seconds</text>',
    ]


def _seconds(decades: range, x: _Scale, top: float) -> list[str]:
    """Draw the grid of seconds of a panel."""
    parts = []
    for decade in decades:
        place = x(decade)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{top + _PANEL}"/>')
        parts.append(_text(place, top + _PANEL + 16, f"{10.0**decade:g}", "middle"))
    return parts


def _panel(points: Sequence[tuple[float, float, str]], full: float, top: float, color: str, title: str) -> list[str]:
    """Draw a panel: the grid of scores, full precision, and the points with their names.

    Args:
        points: Place from the left, score and name of each method.
        full: Score in full precision.
        top: Place of the panel from the top.
        color: Color of the points.
        title: Title of the panel.
    """
    low, high = _range([score for _, score, _ in points], full)
    y = _Scale(low, high, top + _PANEL, top)
    parts = [f'<circle cx="{_LEFT + 4}" cy="{top - 12}" r="4" fill="{color}"/>', _text(_LEFT + 12, top - 8, title)]
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    parts.append(f'<line class="full" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(full):.1f}" y2="{y(full):.1f}"/>')
    parts.append(_text(_WIDTH - _RIGHT + 6, y(full) + 4, FULL_PRECISION))
    taken = [_Box(left - 4, y(score) - 4, left + 4, y(score) + 4) for left, score, _ in points]
    for left, score, name in sorted(points, key=lambda point: -point[1]):
        label = name if score >= low else f"{name} {score:.2f}"
        parts.append(f'<circle cx="{left:.1f}" cy="{y(score):.1f}" r="4" fill="{color}"/>')
        parts.append(_label(left, y(score), label, taken, (top, top + _PANEL)))
    return parts


def _range(scores: Sequence[float], full: float) -> tuple[float, float]:
    """Return the scores at the ends of a panel: down to three times the median loss, and one point at least."""
    median = statistics.median(full - score for score in scores)
    low = max(min(*scores, full), full - max(1.0, 3 * median))
    high = max(*scores, full)
    margin = 0.05 * max(high - low, 1.0)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Return at most nine round values between two."""
    step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 20, 50) if (high - low) / step <= 8)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _label(left: float, middle: float, text: str, taken: list[_Box], limits: tuple[float, float]) -> str:
    """Return the name of a point, where it covers no other one if there is such a place near it.

    Args:
        left: Place of the point from the left.
        middle: Its place from the top.
        text: The name.
        taken: Places of all points and of earlier names; that of this name is added.
        limits: Ends of the panel, from the top.
    """
    width = _LETTER * len(text)
    places: list[tuple[_Box, str]] = []
    for shift in (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0, 5.0, -5.0):
        top = middle - _LINE / 2 + shift * _LINE
        if limits[0] - _LINE / 2 <= top and top + _LINE <= limits[1] + _LINE / 2:
            places.append((_Box(left + _MARK, top, left + _MARK + width, top + _LINE), "start"))
            if left - _MARK - width > _LEFT:
                places.append((_Box(left - _MARK - width, top, left - _MARK, top + _LINE), "end"))
    free = (place for place in places if not any(place[0].covers(other) for other in taken))
    box, anchor = next(free, places[0])
    taken.append(box)
    return _text(box.left if anchor == "start" else box.right, box.bottom - 2.5, text, anchor)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
