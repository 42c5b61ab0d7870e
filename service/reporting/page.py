"""report.html: the report of an update as a self-contained page without scripts."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from service.journal.states import WORKER_STAGES
from service.reporting.bits import HEAD as BITS_HEAD
from service.reporting.bits import Chosen, Mark, chosen_bits, frontier
from service.reporting.candidates import HEAD, Candidate, candidates
from service.reporting.charts import bars, curves, lines, spans
from service.reporting.facts import (
    Layer,
    Memory,
    Outcome,
    Stage,
    facts,
    layers,
    memory,
    outcome,
    stages,
    totals_of,
    worst_first,
)
from service.reporting.html import MOODS, Html, fill, join, moment
from service.reporting.parts import if_whole
from service.reporting.pictures import predictions
from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

STATIC = Path(__file__).parent / "static"
_NOTHING = Html("")
_DAMAGED = Html('<p class="note">A part cannot be shown: its file is damaged, or of another version of edged.</p>')
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
<p><code>{file}</code>, dropped {dropped}</p>
{problem}
{reused}
</header>
<main>
<section aria-labelledby="outcome"><h2 id="outcome">Outcome</h2><dl class="facts">{facts}</dl></section>
<section aria-labelledby="course"><h2 id="course">Course</h2>{course}</section>
{candidates}
{layers}
{predictions}
</main>
</body>
</html>
"""
_WIDE = """<figure class="wide"><figcaption>{caption}</figcaption>
<div class="scroll" tabindex="0" role="region" aria-label="{caption}">{chart}</div></figure>"""
_FIGURE = "<figure><figcaption>{caption}</figcaption>{chart}</figure>"
_FRONTIER = """<figure><figcaption>Error of the outputs by bytes of the weights, measured a layer at a time and added:
<span class="key uniform">one width for all layers</span> <span class="key auto">bits for each layer</span>
<span class="key artifact">this artifact</span></figcaption>{chart}</figure>"""
_TABLE = """<details><summary>{label}</summary><div class="scroll" tabindex="0" role="region" aria-label="{label}">
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"""
_CANDIDATES = """<section aria-labelledby="candidates"><h2 id="candidates">Candidates to serve</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Candidates to serve"><table><thead><tr>{head}</tr></thead>
<tbody>{rows}</tbody></table></div></section>"""
_LAYERS = """<section aria-labelledby="layers"><h2 id="layers">Layers</h2>
<div class="charts">{charts}</div>{table}</section>"""


def render(data: JSON) -> str:
    """Return the whole page.

    Args:
        data: Data of the update, see `service.reporting.data.gather`.
    """
    ended = outcome(data)
    return fill(
        _PAGE,
        policy=policy(),
        style=_stylesheet(),
        id=ended.id,
        model=ended.model,
        state=ended.state,
        mood=MOODS.get(ended.state, "plain"),
        file=ended.file_name,
        dropped=moment(data["update"]["dropped_at"]),
        problem=fill('<p class="problem">{text}</p>', text=ended.problem) if ended.problem else _NOTHING,
        reused=_reused(ended),
        facts=join(fill("<div><dt>{name}</dt><dd>{value}</dd></div>", name=n, value=v) for n, v in facts(data)),
        course=_course(data),
        candidates=if_whole("the candidates", lambda: _candidates(candidates(totals_of(data))), _DAMAGED),
        layers=if_whole("the layers", lambda: _layers(data), _DAMAGED),
        predictions=if_whole("the predictions", lambda: predictions(data.get("predictions") or {}), _DAMAGED),
    )


def policy() -> str:
    """Return the Content-Security-Policy of the page, which allows only its own style and embedded pictures."""
    digest = base64.b64encode(hashlib.sha256(_stylesheet().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _reused(ended: Outcome) -> Html:
    """Return a note if the same file was dropped before, so that an earlier update produced the report's files."""
    if not ended.is_reused:
        return _NOTHING
    text = "The same file was dropped before: layers, memory and predictions are those of update {made_by}."
    return fill('<p class="note">' + text + "</p>", made_by=ended.made_by)


def _course(data: JSON) -> Html:
    placed, used = stages(data), if_whole("the memory", lambda: memory(data), None)
    charts = [_stages(placed)] if placed else []
    if used is not None:
        chart = partial(_memory, used, placed, data["update"]["dropped_at"])
        charts.append(if_whole("the memory", chart, _DAMAGED))
    rows = (
        (event["at"], event["state"], ", ".join(f"{key} {value}" for key, value in event["detail"].items()))
        for event in data["update"].get("events") or []
    )
    table = _table("States and times", ("Time", "State", "Detail"), rows)
    return fill('<div class="charts">{charts}</div>{table}', charts=join(charts), table=table)


def _stages(placed: Sequence[Stage]) -> Html:
    longest = max(placed, key=lambda stage: stage.seconds)
    label = f"{len(placed)} stages; the longest is {longest.name}, {format_seconds(longest.seconds)}"
    return fill(_FIGURE, caption="Stages since the file was dropped", chart=spans(placed, label))


def _memory(used: Memory, placed: Sequence[Stage], dropped_at: str) -> Html:
    span_s = used.span_s
    series = [("memory", [(at - span_s, float(sample)) for at, sample in used.samples])]
    label = f"Memory of the worker over {format_seconds(span_s)}: at most {format_bytes(used.peak_bytes)}"
    ticks = ("0 s", format_seconds(span_s))
    bands = _bands(used, placed, dropped_at)
    chart = lines(series, span_s, format_bytes, label, ticks, gap_s=span_s, bands=bands, base=1024)
    return fill(_FIGURE, caption="Resident memory of the worker", chart=chart)


def _bands(used: Memory, placed: Sequence[Stage], dropped_at: str) -> list[tuple[str, float, float]]:
    """Return the name, start and end of each stage of the worker, in seconds before the last sample."""
    dropped = datetime.datetime.fromisoformat(dropped_at.replace("Z", "+00:00")).timestamp()
    worker_start_s = used.started_at - dropped
    bands = []
    for stage in placed:
        begin = stage.start_s - worker_start_s
        if stage.name in WORKER_STAGES and 0 <= begin < used.span_s:
            bands.append((stage.name, begin - used.span_s, min(0.0, begin + stage.seconds - used.span_s)))
    return bands


def _candidates(listed: Sequence[Candidate]) -> Html:
    if not listed:
        return _NOTHING
    return fill(_CANDIDATES, head=_head(HEAD), rows=join(_row(candidate) for candidate in listed))


def _layers(data: JSON) -> Html:
    quantized: Sequence[Layer] = layers(data)
    if not quantized:
        return _NOTHING
    report: JSON = data.get("report") or {}
    chosen: Sequence[Chosen] = chosen_bits(report)
    count, worst = len(quantized), worst_first(quantized)[0]
    losses = bars(
        [(layer.name, layer.relative_loss) for layer in quantized],
        f"Loss of {count} layers; the highest is {worst.relative_loss:.3g}, of {worst.name}",
    )
    widths = ", ".join(map(str, sorted({layer.bits for layer in quantized})))
    bits = bars([(layer.name, float(layer.bits)) for layer in quantized], f"Bits of {count} layers: {widths}")
    charts = [
        fill(_WIDE, caption="Loss of each layer, as a share of its output's energy", chart=losses),
        fill(_WIDE, caption="Bits of each layer's weights", chart=bits),
    ]
    if known := frontier(report):
        charts.append(_frontier(known))
    rows = (
        (layer.name, layer.kind, layer.size, layer.bits, f"{layer.relative_loss:.3g}", layer.order, layer.images)
        for layer in quantized
    )
    head = ("Layer", "Kind", "Weights", "Bits", "Loss", "Order", "Images")
    tables = [_table("As a table", head, rows)]
    if chosen:
        tables.append(_table("Why these bits", BITS_HEAD, chosen))
    return fill(_LAYERS, charts=join(charts), table=join(tables))


def _frontier(known: Sequence[tuple[str, Sequence[Mark]]]) -> Html:
    """Draw the error of the outputs against the bytes of the weights, for one width in all layers and for several."""
    marks = dict(known)
    (_, size, error) = marks["artifact"][0]
    label = f"Error of the outputs by bytes of the weights; this artifact takes {format_bytes(size)} at {error:.2g}"
    chart = curves(known, (format_bytes, lambda value: f"{value:.3g}"), label)
    return fill(_FRONTIER, chart=chart)


def _table(label: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table that is collapsed under a summary; the first cell of a row is its heading."""
    return fill(
        _TABLE,
        label=label,
        head=_head(head),
        rows=join(_row(row) for row in rows),
    )


def _head(names: Sequence[str]) -> Html:
    return join(fill('<th scope="col">{name}</th>', name=name) for name in names)


def _row(cells: Sequence[object]) -> Html:
    rest = join(fill('<td class="name">{cell}</td>', cell=cell) for cell in cells[1:])
    return fill('<tr><th scope="row">{first}</th>{rest}</tr>', first=cells[0], rest=rest)


@cache
def _stylesheet() -> Html:
    """Return the style of the status page, followed by that of reports."""
    return Html("".join((STATIC / name).read_text() for name in ("status.css", "report.css")))
