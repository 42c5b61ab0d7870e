"""The plot of benchmarks.accuracy: loss of top-1 by bits, with a panel per network, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.quantization.networks import NETWORKS
from benchmarks.quantization.results import Results
from benchmarks.quantization.tables import TITLES


@dataclass(frozen=True)
class Look:
    """Appearance of a method: color, dash pattern, shape of its points."""

    color: str
    dash: str
    mark: str


# Colors keep their contrast on white and on near-black; shapes distinguish methods without colors.
LOOKS = {
    "rtn": Look("#8a8a8a", "2 3", "circle"),
    "obq": Look("#b07aa1", "2 3", "square"),
    "paper": Look("#e08214", "6 3", "square"),
    "brevitas-gptq": Look("#1b9e77", "6 3", "triangle"),
    "brevitas-qronos": Look("#2ca25f", "2 3", "diamond"),
    "fast": Look("#6baed6", "", "circle"),
    "balanced": Look("#2f7ed8", "", "circle"),
    "best": Look("#d6456b", "", "diamond"),
}
BITS = (4, 3, 2)
TICKS = (-0.5, 0, 0.5, 1, 2, 5, 10, 20, 50)
LOWEST, HIGHEST, LINEAR = -0.8, 80.0, 0.5  # points; the scale is linear below LINEAR and logarithmic above
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 330, 230, 60, 96, 70, 64
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 } .panel { font-size: 13px; font-weight: 600 } .faint { fill: #57606a }
.page { fill: #ffffff } .grid { stroke: #d0d7de; stroke-width: 1 } .zero { stroke: #57606a; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .faint { fill: #9da7b1 } .page { fill: #0d1117 } .grid { stroke: #30363d }
.zero { stroke: #9da7b1 } }
"""


def draw(results: Results) -> str:
    """Return the plot as SVG text."""
    networks = results.names(NETWORKS, 0)
    methods = results.names(LOOKS, 2)
    lines = -(-max(len(networks), 1) // 2)
    width = 2 * (LEFT + PANEL_WIDTH) + GAP_X - LEFT + 24
    height = TOP + lines * (PANEL_HEIGHT + GAP_Y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<title>Points of top-1 lost against full precision, by bits per weight</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
        _text(16, 28, "Top-1 lost against full precision, by bits per weight", "title"),
        *_legend(methods),
    ]
    for index, network in enumerate(networks):
        x = LEFT + index % 2 * (PANEL_WIDTH + GAP_X)
        y = TOP + 16 + index // 2 * (PANEL_HEIGHT + GAP_Y)
        parts += _panel(results, network, methods, x, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(methods: Sequence[str]) -> list[str]:
    parts, x, y = [], 16.0, 54
    for method in methods:
        look, span = LOOKS[method], 50 + 6.6 * len(method)
        if x + span > 2 * (PANEL_WIDTH + LEFT):
            x, y = 16.0, y + 20
        parts += [_line([(x, y - 4), (x + 26, y - 4)], look), _mark(x + 13, y - 4, look), _text(x + 32, y, method)]
        x += span
    return parts


def _panel(results: Results, network: str, methods: Sequence[str], x: float, y: float) -> list[str]:
    parts = [_text(x, y - 8, TITLES[network], "panel")]
    for tick in TICKS:
        height = y + _height(tick)
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x + PANEL_WIDTH}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_text(x - 8, height + 4, f"{tick:g}", "faint", "end"))
    for bits in BITS:
        parts.append(_text(x + _place(bits), y + PANEL_HEIGHT + 18, f"{bits} bits", "faint", "middle"))
    if x == LEFT:
        middle = y + PANEL_HEIGHT / 2
        label = "points lost (log above 0.5)"
        turned = f'transform="rotate(-90 20 {middle})"'
        parts.append(f'<text class="faint" text-anchor="middle" x="20" y="{middle}" {turned}>{label}</text>')
    for order, method in enumerate(methods):
        # Shift each method sideways, so that equal values do not hide each other.
        shift = (order - (len(methods) - 1) / 2) * 5
        rows = [row for bits in BITS if (row := results.rows.get((network, bits, method)))]
        points = [(x + _place(row.bits) + shift, y + _height(row.drop)) for row in rows]
        if points:
            parts += [_line(points, LOOKS[method]), *(_mark(*point, LOOKS[method]) for point in points)]
    return parts


def _place(bits: int) -> float:
    return (BITS.index(bits) + 0.5) / len(BITS) * PANEL_WIDTH


def _height(drop: float) -> float:
    low, high = math.asinh(LOWEST / LINEAR), math.asinh(HIGHEST / LINEAR)
    return PANEL_HEIGHT * (math.asinh(min(max(drop, LOWEST), HIGHEST) / LINEAR) - low) / (high - low)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _line(points: Sequence[tuple[float, float]], look: Look) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
    return f'<polyline fill="none" stroke="{look.color}" stroke-width="1.6"{dash} points="{places}"/>'


def _mark(x: float, y: float, look: Look) -> str:
    if look.mark == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{look.color}"/>'
    corners = {
        "square": ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        "diamond": ((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
        "triangle": ((0, -4.4), (4.2, 3.4), (-4.2, 3.4)),
    }[look.mark]
    places = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{places}" fill="{look.color}"/>'
