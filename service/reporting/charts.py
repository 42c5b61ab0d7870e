"""Charts as SVG: bars, lines, curves and spans of time. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from service.reporting.html import Html, fill, join
from service.units import format_seconds

_WIDTH, _HEIGHT = 340.0, 120.0  # of the drawing, in user units that the page scales
_LEFT, _TOP, _BOTTOM = 64.0, 8.0, 18.0  # margins for labels
_RIGHT, _ROW = 62.0, 15.0  # margin for the seconds after a bar; height of a row
_LETTER = 6.5  # approximate width of a letter
_GAP_S = 30.0  # samples that are further apart are not joined by a line
_BARS_WIDTH, _BARS_LEFT, _BARS_BASE = 1200.0, 64.0, 118.0  # of a chart of bars: its names are below the bars
_WIDEST, _NARROWEST = 28.0, 1.0  # of a bar
_DOT = 2.6  # radius of a mark on a curve
_ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_NAME_STEP, _NAME_LETTER, _LONGEST_NAME = 11.0, 5.6, 22  # width of a name on its side; letters that are shown of one

Point = tuple[float, "float | None"]
Mark = tuple[str, float, float]  # name, place on the horizontal axis, height


def bars(values: Sequence[tuple[str, float]], label: str) -> Html:
    """Draw a bar for each value, with its name below it where there is room.

    A bar and its name are in a group whose attributes are the texts that a script can show for it.

    Args:
        values: Name and height of each bar; heights are not negative.
        label: Description of the chart for screen readers.
    """
    most = ceiling(max((height for _, height in values), default=0.0))
    step = (_BARS_WIDTH - _BARS_LEFT) / max(len(values), 1)
    named = _with_room(values, step)
    longest = max((len(_short(values[index][0])) for index in named), default=0)
    plot = _BARS_BASE - _TOP
    drawn = (
        fill(
            '<g class="column" data-name="{name}" data-value="{value}"><title>{name}: {value}</title>'
            '<rect class="hit" x="{left}" y="{top}" width="{step}" height="{plot}"/>'
            '<rect class="bar" x="{x}" y="{y}" width="{width}" height="{height}"/>{text}</g>',
            left=f"{_BARS_LEFT + index * step:.1f}",
            top=f"{_TOP:.0f}",
            step=f"{step:.1f}",
            plot=f"{plot:.0f}",
            x=f"{_BARS_LEFT + (index + 0.5) * step - _bar_width(step) / 2:.1f}",
            y=f"{_TOP + plot * (1 - value / (most or 1.0)):.1f}",
            width=f"{_bar_width(step):.1f}",
            height=f"{plot * value / (most or 1.0):.1f}",
            name=name,
            value=f"{value:.3g}",
            text=_name_below(name, _BARS_LEFT + (index + 0.5) * step) if index in named else "",
        )
        for index, (name, value) in enumerate(values)
    )
    return fill(
        '<svg role="img" class="bars" aria-label="{label}" viewBox="0 0 {width} {height}">{grid}{drawn}</svg>',
        label=label,
        width=f"{_BARS_WIDTH:.0f}",
        height=f"{_BARS_BASE + 8 + _NAME_LETTER * longest:.0f}",
        grid=_grid(_BARS_LEFT, _BARS_WIDTH, _BARS_BASE, most, lambda value: f"{value:.3g}"),
        drawn=join(drawn),
    )


def ceiling(most: float, base: float = 10.0) -> float:
    """Return the lowest round number that is not below `most`: one digit, 1.5 or 2.5, times a power of ten; 0 for 0.

    Args:
        most: Largest value of a chart, not negative.
        base: 10; or 1024 for bytes, whose units are powers of 1024.
    """
    if most <= 0:
        return 0.0
    unit = base ** math.floor(math.log(most, base)) if base != 10.0 else 1.0
    power = 10.0 ** math.floor(math.log10(most / unit))
    rounded = next(step for step in _ROUND if step * power * unit >= most * (1 - 1e-9))
    return rounded * power * unit


def _with_room(values: Sequence[tuple[str, float]], step: float) -> set[int]:
    """Return which bars get their name as text: the highest first, none nearer to another than a name is wide."""
    apart = math.ceil(_NAME_STEP / step)
    named: set[int] = set()
    for index in sorted(range(len(values)), key=lambda index: -values[index][1]):
        if not any(index + offset in named for offset in range(1 - apart, apart)):
            named.add(index)
    return named


def _name_below(name: str, x: float) -> Html:
    return fill(
        '<text class="tick end name" transform="translate({x} {y}) rotate(-90)">{text}</text>',
        x=f"{x + 3:.1f}",
        y=f"{_BARS_BASE + 5:.0f}",
        text=_short(name),
    )


def _short(name: str) -> str:
    """Return the end of a long name, which tells layers apart."""
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _bar_width(step: float) -> float:
    return max(min(_WIDEST, 0.75 * step), _NARROWEST)


def lines(
    series: Sequence[tuple[str, Sequence[Point]]],
    span_s: float,
    unit: Callable[[float], str],
    label: str,
    ticks: tuple[str, str] | None = None,
    gap_s: float = _GAP_S,
    bands: Sequence[tuple[str, float, float]] = (),
    base: float = 10.0,
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
        base: 1024 if heights are bytes, so that the axis ends at a round number of their unit.
    """
    heights = (height for _, points in series for _, height in points if height is not None)
    most = ceiling(max(heights, default=0.0), base)
    ground = join(_band(index, band, span_s) for index, band in enumerate(bands))
    drawn = join(
        fill('<path class="line {name}" d="{path}"/>', name=name, path=_path(points, span_s, most or 1.0, gap_s))
        for name, points in series
    )
    left, right = ticks or (f"{span_s / 60:.0f} min ago", "now")
    return _chart(label, _grid(_LEFT, _WIDTH, _HEIGHT - _BOTTOM, most, unit), left, right, join([ground, drawn]))


def curves(
    series: Sequence[tuple[str, Sequence[Mark]]],
    units: tuple[Callable[[float], str], Callable[[float], str]],
    label: str,
) -> Html:
    """Draw a line with a dot at each mark for each series, heights on a logarithmic axis.

    Args:
        series: CSS class and marks of each line. Marks are joined in order of their place; those without a positive
            height are left out.
        units: Functions that format a place and a height.
        label: Description of the chart for screen readers.
    """
    kept = [(name, sorted((m for m in marks if m[2] > 0), key=lambda mark: mark[1])) for name, marks in series]
    places = [place for _, marks in kept for _, place, _ in marks] or [0.0]
    heights = [math.log10(height) for _, marks in kept for _, _, height in marks] or [0.0]
    (left, right), (low, high) = (min(places), max(places)), (math.floor(min(heights)), math.ceil(max(heights)))
    tall = max(high - low, 1)

    def at(mark: Mark) -> tuple[float, float]:
        across = (mark[1] - left) / (right - left or 1.0)
        return _LEFT + _DOT + across * (_WIDTH - _LEFT - 2 * _DOT), _y((math.log10(mark[2]) - low) / tall)

    drawn = (_curve(name, [(mark, *at(mark)) for mark in marks], units) for name, marks in kept if marks)
    grid = _decades(low, low + tall, units[1])
    return _chart(label, grid, units[0](left), units[0](right), join(drawn))


def _curve(
    name: str,
    placed: Sequence[tuple[Mark, float, float]],
    units: tuple[Callable[[float], str], Callable[[float], str]],
) -> Html:
    dots = (
        fill(
            '<circle class="dot {name}" cx="{x}" cy="{y}" r="{radius}">'
            "<title>{text}: {place}, {height}</title></circle>",
            name=name,
            x=f"{x:.1f}",
            y=f"{y:.1f}",
            radius=f"{_DOT:g}",
            text=text,
            place=units[0](place),
            height=units[1](height),
        )
        for (text, place, height), x, y in placed
    )
    path = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in placed)
    line = fill('<polyline class="line {name}" points="{path}"/>', name=name, path=path)
    return join([line, *dots])


def _decades(low: int, high: int, unit: Callable[[float], str]) -> Html:
    """Return the lines at the bottom, the middle and the top of a logarithmic axis, at powers of ten."""
    powers = sorted({low, (low + high) // 2, high})
    return join(
        fill(
            '<line class="{kind}" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>'
            '<text class="tick end" x="{before}" y="{base}">{value}</text>',
            kind="axis" if power == low else "grid",
            left=f"{_LEFT:.0f}",
            right=f"{_WIDTH:.0f}",
            y=f"{_y((power - low) / (high - low)):.1f}",
            before=f"{_LEFT - 6:.0f}",
            base=f"{_y((power - low) / (high - low)) + 4:.1f}",
            value=unit(10.0**power),
        )
        for power in powers
    )


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


def _grid(left: float, right: float, bottom: float, most: float, unit: Callable[[float], str]) -> Html:
    """Return the lines at the bottom, the middle and the top of a chart, with their values; only the axis if empty."""
    shares = (0.0, 0.5, 1.0) if most else (0.0,)
    return join(
        fill(
            '<line class="{kind}" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>'
            '<text class="tick end" x="{before}" y="{base}">{value}</text>',
            kind="grid" if share else "axis",
            left=f"{left:.0f}",
            right=f"{right:.0f}",
            y=f"{_TOP + (bottom - _TOP) * (1 - share):.1f}",
            before=f"{left - 6:.0f}",
            base=f"{_TOP + (bottom - _TOP) * (1 - share) + 4:.1f}",
            value=unit(most * share) if share else "0" if most else "",
        )
        for share in shares
    )


def _chart(label: str, grid: Html, left: str, right: str, drawn: Html) -> Html:
    return fill(
        '<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}">{grid}'
        '<text class="tick" x="{axis}" y="{below}">{left}</text>'
        '<text class="tick end" x="{width}" y="{below}">{right}</text>{drawn}</svg>',
        label=label,
        grid=grid,
        left=left,
        right=right,
        drawn=drawn,
        width=f"{_WIDTH:.0f}",
        height=f"{_HEIGHT:.0f}",
        axis=f"{_LEFT:.0f}",
        below=f"{_HEIGHT - 4:.0f}",
    )
