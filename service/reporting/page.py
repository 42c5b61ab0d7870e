"""report.html: one update for people, in one file that needs no other and runs no script."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from service.journal.states import WORKER_STAGES
from service.reporting.charts import bars, lines, spans
from service.reporting.facts import facts
from service.reporting.html import MOODS, Html, fill, join
from service.reporting.pictures import predictions
from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

STATIC = Path(__file__).parent / "static"
_NOTHING = Html("")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>edged: update {id} of {model}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>Update {id} of {model} <span class="badge {mood}">{state}</span></h1>
<p><code>{file}</code>, dropped <time>{dropped}</time></p>
{reason}
{borrowed}
</header>
<main>
<section aria-labelledby="outcome"><h2 id="outcome">Outcome</h2><dl class="facts">{facts}</dl></section>
<section aria-labelledby="course"><h2 id="course">Course</h2>{course}</section>
{layers}
{predictions}
</main>
</body>
</html>
"""
_FIGURE = "<figure><figcaption>{caption}</figcaption>{chart}</figure>"
_TABLE = """<details><summary>{label}</summary><div class="scroll" tabindex="0" role="region" aria-label="{label}">
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"""
_LAYERS = """<section aria-labelledby="layers"><h2 id="layers">Layers</h2>
<div class="charts">{charts}</div>{table}</section>"""


def render(data: JSON) -> str:
    """The whole page.

    Args:
        data: See `service.reporting.data.gather`.
    """
    update: JSON = data["update"]
    reason = f"{update['code']}: {update['reason']}" if update.get("code") else ""
    return fill(
        _PAGE,
        policy=policy(),
        style=_stylesheet(),
        id=update["id"],
        model=update["model"],
        state=update["state"],
        mood=MOODS.get(update["state"], "plain"),
        file=update["file_name"],
        dropped=update["dropped_at"],
        reason=fill('<p class="problem">{text}</p>', text=reason) if reason else _NOTHING,
        borrowed=_borrowed(update, data.get("course") or {}),
        facts=join(fill("<div><dt>{name}</dt><dd>{value}</dd></div>", name=n, value=v) for n, v in facts(data)),
        course=_course(data),
        layers=_layers((data.get("report") or {}).get("layers") or []),
        predictions=predictions(data.get("predictions") or {}),
    )


def policy() -> str:
    """The Content-Security-Policy of the page: its own style, pictures in itself, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_stylesheet().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _borrowed(update: JSON, course: JSON) -> Html:
    """The same file dropped again finds what an earlier update made of it."""
    maker = course.get("update", update["id"])
    if maker == update["id"]:
        return _NOTHING
    text = "The same file was dropped before: layers, memory and predictions are those of update {maker}."
    return fill('<p class="note">' + text + "</p>", maker=maker)


def _course(data: JSON) -> Html:
    charts = [*_timeline(data["timeline"]), *_memory(data.get("course") or {}, data["timeline"], data["update"])]
    rows = (
        (event["at"], event["state"], ", ".join(f"{key} {value}" for key, value in event["detail"].items()))
        for event in data["update"].get("events") or []
    )
    table = _table("States and times", ("Time", "State", "Detail"), rows)
    return fill('<div class="charts">{charts}</div>{table}', charts=join(charts), table=table)


def _timeline(timeline: Sequence[JSON]) -> Iterable[Html]:
    if timeline:
        longest = max(timeline, key=lambda span: float(span["seconds"]))
        label = f"{len(timeline)} stages; the longest is {longest['stage']}, {format_seconds(longest['seconds'])}"
        chart = spans([(span["stage"], span["start_s"], span["seconds"]) for span in timeline], label)
        yield fill(_FIGURE, caption="Stages since the file was dropped", chart=chart)


def _memory(course: JSON, timeline: Sequence[JSON], update: JSON) -> Iterable[Html]:
    points: Sequence[tuple[float, int]] = course.get("memory") or []
    if not points:
        return
    span_s = max(points[-1][0], 0.1)
    peak = max(used for _, used in points)
    series = [("memory", [(at - span_s, float(used)) for at, used in points])]
    label = f"Memory of the worker over {format_seconds(span_s)}: at most {format_bytes(peak)}"
    ticks = ("0 s", format_seconds(span_s))
    bands = _bands(course, timeline, update, span_s)
    chart = lines(series, span_s, format_bytes, label, ticks, gap_s=span_s, bands=bands)
    yield fill(_FIGURE, caption="Resident memory of the worker", chart=chart)


def _bands(course: JSON, timeline: Sequence[JSON], update: JSON, span_s: float) -> list[tuple[str, float, float]]:
    """The worker's stages, in seconds before its end."""
    dropped = datetime.datetime.fromisoformat(update["dropped_at"].replace("Z", "+00:00")).timestamp()
    worker_began = course["started_at"] - dropped
    bands = []
    for span in timeline:
        begin = span["start_s"] - worker_began
        if span["stage"] in WORKER_STAGES and 0 <= begin < span_s:
            bands.append((span["stage"], begin - span_s, min(0.0, begin + span["seconds"] - span_s)))
    return bands


def _layers(layers: Sequence[JSON]) -> Html:
    if not layers:
        return _NOTHING
    losses = [(str(layer["name"]), float(layer["relative_loss"])) for layer in layers]
    worst, highest = max(losses, key=lambda entry: entry[1])
    bits = [(str(layer["name"]), float(layer["bits"])) for layer in layers]
    lost = bars(losses, f"Loss of {len(layers)} layers; the highest is {highest:.3g}, of {worst}")
    widths = sorted({int(width) for _, width in bits})
    wide = bars(bits, f"Bits of {len(layers)} layers: {', '.join(map(str, widths))}")
    charts = [
        fill(_FIGURE, caption="Loss of each layer, as a share of its output's energy", chart=lost),
        fill(_FIGURE, caption="Bits of each layer's weights", chart=wide),
    ]
    rows = (
        (
            layer["name"],
            layer.get("kind"),
            f"{layer.get('rows')} x {layer.get('columns')}",
            layer["bits"],
            f"{layer['relative_loss']:.3g}",
            layer.get("order"),
            layer.get("images"),
        )
        for layer in layers
    )
    head = ("Layer", "Kind", "Weights", "Bits", "Loss", "Order", "Images")
    return fill(_LAYERS, charts=join(charts), table=_table("As a table", head, rows))


def _table(label: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Behind a summary; the first cell of a row is its heading."""
    return fill(
        _TABLE,
        label=label,
        head=join(fill('<th scope="col">{name}</th>', name=name) for name in head),
        rows=join(_row(row) for row in rows),
    )


def _row(cells: Sequence[object]) -> Html:
    rest = join(fill('<td class="name">{cell}</td>', cell=cell) for cell in cells[1:])
    return fill('<tr><th scope="row">{first}</th>{rest}</tr>', first=cells[0], rest=rest)


@cache
def _stylesheet() -> Html:
    """That of the status page, and what a report has beyond it."""
    return Html("".join((STATIC / name).read_text() for name in ("status.css", "report.css")))
