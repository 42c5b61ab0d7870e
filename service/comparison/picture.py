"""The picture of a comparison: accuracy against seconds, as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from service.comparison.differences import metric_of
from service.comparison.job import FULL_PRECISION
from service.reporting.facts import NAMES

_WIDTH, _HEIGHT = 760.0, 420.0
_LEFT, _TOP, _RIGHT, _BOTTOM = 64.0, 48.0, 120.0, 52.0
_COLORS = ("#2f7ed8", "#e08214", "#d6456b", "#1b9e77", "#8a5cc2", "#8a8a8a", "#b07aa1")
_LINE = 12.0  # least distance of two labels
_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f } .title { font-size: 14px; font-weight: 600 }
.page { fill: #ffffff } .grid { stroke: #d0d7de } .full { stroke: #57606a; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #30363d } }
"""


def draw(result: Mapping[str, Any]) -> str:
    """Return the picture: a point for each method, a color for each number of bits, seconds on a logarithmic axis."""
    metric = metric_of(result)
    full: float = result["rows"][0]["score"][metric]
    rows = [row for row in result["rows"][1:] if "error" not in row and row["method"] != FULL_PRECISION]
    values = [full, *(row["score"][metric] for row in rows)]
    low, high = math.floor(min(values) - 0.5), math.ceil(max(values) + 0.5)
    seconds = [max(row["seconds"], 0.01) for row in rows] or [1.0]
    first, last = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)) + 1e-9)

    def x(value: float) -> float:
        share: float = (math.log10(max(value, 0.01)) - first) / max(last - first, 1)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        share: float = (value - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [*_frame(NAMES[metric]), *_grid(range(first, last + 1), _ticks(low, high), x, y)]
    parts.append(f'<line class="full" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(full):.1f}" y2="{y(full):.1f}"/>')
    parts.append(_text(_WIDTH - _RIGHT + 6, y(full) + 4, FULL_PRECISION))
    widths = sorted({row["bits"] for row in rows}, reverse=True)
    for bits in widths:
        color = _COLORS[widths.index(bits) % len(_COLORS)]
        points = [(x(row["seconds"]), y(row["score"][metric]), row["method"]) for row in rows if row["bits"] == bits]
        parts += _points(points, color)
        parts.append(f'<circle cx="{_LEFT + 70 * widths.index(bits) + 4}" cy="36" r="4" fill="{color}"/>')
        parts.append(_text(_LEFT + 70 * widths.index(bits) + 12, 40, f"{bits} bits"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _frame(metric: str) -> list[str]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img">',
        f"<title>{metric} against the seconds of quantizing</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}"/>',
        f'<text class="title" x="{_LEFT}" y="20">{metric} in percent against the seconds of quantizing</text>',
        f'<text text-anchor="middle" x="16" y="{middle}" transform="rotate(-90 16 {middle})">{metric}, percent</text>',
        f'<text text-anchor="middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}">seconds</text>',
    ]


def _ticks(low: int, high: int) -> range:
    """Return at most nine round values between two."""
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (high - low) / step <= 8)
    return range(-(-low // step) * step, high + 1, step)


def _grid(decades: range, ticks: range, x: Any, y: Any) -> list[str]:
    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(_LEFT - 8, y(tick) + 4, str(tick), "end"))
    for decade in decades:
        place = x(10.0**decade)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM:.0f}"/>')
        parts.append(_text(place, _HEIGHT - _BOTTOM + 16, f"{10.0**decade:g}", "middle"))
    return parts


def _points(points: Sequence[tuple[float, float, str]], color: str) -> list[str]:
    """Draw points with their names to the right, names one below the other where they would overlap."""
    parts, below = [], -math.inf
    for left, top, name in sorted(points, key=lambda point: point[1]):
        parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{color}"/>')
        below = max(top + 4, below + _LINE)
        parts.append(_text(left + 7, below, name))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
