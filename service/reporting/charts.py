"""Charts as SVG: bars, lines and spans of time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.reporting.html import Html, fill, join
from service.units import format_seconds

_WIDTH, _HEIGHT = 340.0, 120.0  # of the drawing, in user units that the page scales
_LEFT, _TOP, _BOTTOM = 64.0, 8.0, 18.0  # margins for labels
_RIGHT, _ROW = 62.0, 15.0  # margin for the seconds after a bar; height of a row
_LETTER = 6.5  # approximate width of a letter
_GAP_S = 30.0  # samples that are further apart are not joined by a line

Point = tuple[float, "float | None"]


def bars(values: Sequence[tuple[str, float]], label: str) -> Html:
    """Draw a bar for each value.

    Args:
        values: Name and height of each bar; heights are not negative.
        label: Description of the chart for screen readers.
    """
    most = max((height for _, height in values), default=0.0) or 1.0
    step = (_WIDTH - _LEFT) / max(len(values), 1)
    drawn = (
        fill(
            '<rect class="bar" x="{x}" y="{y}" width="{width}" height="{height}"><title>{name}: {value}</title></rect>',
            x=f"{_LEFT + index * step:.1f}",
            y=f"{_y(value / most):.1f}",
            width=f"{max(step - 2, 1):.1f}",
            height=f"{(_HEIGHT - _TOP - _BOTTOM) * value / most:.1f}",
            name=name,
            value=f"{value:.3g}",
        )
        for index, (name, value) in enumerate(values)
    )
    return _chart(label, f"{most:.2g}", "", "", join(drawn))


def lines(
    series: Sequence[tuple[str, Sequence[Point]]],
    span_s: float,
    unit: Callable[[float], str],
    label: str,
    ticks: tuple[str, str] | None = None,
    gap_s: float = _GAP_S,
    bands: Sequence[tuple[str, float, float]] = (),
) -> Html:
    """Draw a line for each series over the last `span_s` seconds.

    Args:
        series: CSS class and points of each line. A point has a time in seconds (0 is now, earlier is negative) and a
            height; None for a missing value.
        span_s: Width of the chart in seconds.
        unit: Function that formats a height.
        label: Description of the chart for screen readers.
        ticks: Labels below the left and the right end; None for "N min ago" and "now".
        gap_s: Points that are more seconds apart are not joined.
        bands: Name, start and end of each interval with a background of its own, in seconds as in `series`.
    """
    most = max((height for _, points in series for _, height in points if height is not None), default=0.0)
    ground = join(_band(index, band, span_s) for index, band in enumerate(bands))
    drawn = join(
        fill('<path class="line {name}" d="{path}"/>', name=name, path=_path(points, span_s, most or 1.0, gap_s))
        for name, points in series
    )
    left, right = ticks or (f"{span_s / 60:.0f} min ago", "now")
    return _chart(label, unit(most) if most else "", left, right, join([ground, drawn]))


def spans(rows: Sequence[tuple[str, float, float]], label: str) -> Html:
    """Draw a row for each stage, with a bar from its start to its end.

    Args:
        rows: Name, start in seconds, and duration in seconds of each stage.
        label: Description of the chart for screen readers.
    """
    whole = max((start_s + seconds for _, start_s, seconds in rows), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / whole
    drawn = (
        fill(
            '<text class="tick end" x="{before}" y="{base}">{name}</text>'
            '<rect class="bar" x="{x}" y="{top}" width="{width}" height="9"><title>{name}: {took}</title></rect>'
            '<text class="tick" x="{after}" y="{base}">{took}</text>',
            before=f"{_LEFT - 6:.0f}",
            base=f"{_ROW * index + 12:.1f}",
            name=name,
            x=f"{_LEFT + start_s * scale:.1f}",
            top=f"{_ROW * index + 4:.1f}",
            width=f"{max(seconds * scale, 1.5):.1f}",
            after=f"{_LEFT + max((start_s + seconds) * scale, start_s * scale + 1.5) + 4:.1f}",
            took=format_seconds(seconds),
        )
        for index, (name, start_s, seconds) in enumerate(rows)
    )
    return fill(
        '<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}">{drawn}</svg>',
        label=label,
        width=f"{_WIDTH:.0f}",
        height=f"{_ROW * len(rows) + 4:.0f}",
        drawn=join(drawn),
    )


def _band(index: int, band: tuple[str, float, float], span_s: float) -> Html:
    name, begin, end = band
    left, right = (_LEFT + (_WIDTH - _LEFT) * max(0.0, min(1.0, 1 + at / span_s)) for at in (begin, end))
    return fill(
        '<rect class="band {kind}" x="{x}" y="{top}" width="{width}" height="{height}"><title>{name}</title></rect>'
        '<text class="tick" x="{inside}" y="{base}">{text}</text>',
        kind="odd" if index % 2 else "even",
        x=f"{left:.1f}",
        top=f"{_TOP:.0f}",
        width=f"{right - left:.1f}",
        height=f"{_HEIGHT - _TOP - _BOTTOM:.0f}",
        name=name,
        inside=f"{left + 3:.1f}",
        base=f"{_HEIGHT - _BOTTOM - 5:.0f}",
        text=name if right - left > _LETTER * len(name) + 6 else "",
    )


def _path(points: Sequence[Point], span_s: float, most: float, gap_s: float) -> str:
    """Return the path of a line, interrupted where values are missing; a single value becomes a dot."""
    commands, before = [], None
    for at, height in points:
        if height is None:
            continue
        x, y = _LEFT + (_WIDTH - _LEFT) * (1 + at / span_s), _y(height / most)
        joined = before is not None and at - before <= gap_s
        commands.append(f"L{x:.1f} {y:.1f}" if joined else f"M{x:.1f} {y:.1f}h1")
        before = at
    return "".join(commands)


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)


def _chart(label: str, most: str, left: str, right: str, drawn: Html) -> Html:
    return fill(
        '<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}">'
        '<text class="tick end" x="{before}" y="14">{most}</text>'
        '<text class="tick end" x="{before}" y="{base}">{zero}</text>'
        '<line class="axis" x1="{axis}" y1="{base}" x2="{width}" y2="{base}"/>'
        '<text class="tick" x="{axis}" y="{below}">{left}</text>'
        '<text class="tick end" x="{width}" y="{below}">{right}</text>{drawn}</svg>',
        label=label,
        most=most,
        left=left,
        right=right,
        zero="0" if most else "",
        drawn=drawn,
        width=f"{_WIDTH:.0f}",
        height=f"{_HEIGHT:.0f}",
        axis=f"{_LEFT:.0f}",
        before=f"{_LEFT - 6:.0f}",
        base=f"{_HEIGHT - _BOTTOM:.0f}",
        below=f"{_HEIGHT - 4:.0f}",
    )
