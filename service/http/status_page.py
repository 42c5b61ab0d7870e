"""The page at /: the contents of `edged status` and `edged history`, and charts. Pure; all external text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.daemon.samples import KEEP_S, Sample
from service.reporting.charts import bars, lines
from service.reporting.html import MOODS, Html, fill, join
from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

_LEAST_SPAN_S = 600.0
_NO_MARKUP = Html("")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>edged: {state}</title>
<link rel="stylesheet" href="/static/status.css">
<link rel="icon" href="data:,">
<script src="/static/status.js" defer></script>
</head>
<body>
<header>
<h1>edged</h1>
<p><strong class="badge {mood}">{state}</strong> since <time>{started}</time>; drop folder <code>{drop}</code></p>
{access}
<p id="message" role="status" aria-live="polite"></p>
</header>
<main>
{models}
<section aria-labelledby="updates"><h2 id="updates">Last updates</h2>{updates}</section>
</main>
</body>
</html>
"""
_MODEL = """<section aria-labelledby="model-{number}">
<h2 id="model-{number}">{name} {badges}</h2>
{problem}
<dl>{facts}</dl>
{actions}
<div class="charts">
<figure>
<figcaption>Latency: <span class="key p50">median</span>, <span class="key p99">99th percentile</span></figcaption>
{latency}</figure>
<figure><figcaption>Memory of the serving process</figcaption>{memory}</figure>
<figure><figcaption>Loss of each layer, as a share of its output's energy</figcaption>{layers}</figure>
</div>
</section>"""
_ACCESS_FORM = """<form id="access"><label>Token <input id="token" type="password" autocomplete="off"></label>
<span class="note">for actions; see serve.token_file</span></form>"""
_NO_ACTIONS = '<p class="note">Actions need serve.token_file; or use the commands.</p>'
_ACTIONS = """<div class="actions">
<button type="button" data-post="/edged/v1/models/{model}/rollback" aria-label="Roll back {model}">Roll back</button>
<form class="drop" data-target="/edged/v1/models/{model}/drop"><label>New checkpoint
<input type="file" required></label> <button aria-label="Drop for {model}">Drop</button></form>
</div>"""
_UPDATES = """<div class="scroll" tabindex="0" role="region" aria-labelledby="updates"><table>
<thead><tr><th scope="col">Update</th><th scope="col">Model</th><th scope="col">File</th><th scope="col">State</th>
<th scope="col">Generation</th><th scope="col">Stages</th><th scope="col">Note</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""
_UPDATE = """<tr>
<th scope="row"><a href="/edged/v1/updates/{id}/report" aria-label="Report of update {id}">{id}</a></th>
<td>{model}</td><td class="name">{file}</td>
<td><span class="badge {mood}">{state}</span></td><td>{generation}</td><td>{stages}</td>
<td class="name">{note}</td></tr>"""


def render(overview: JSON, *, actions: bool, local: bool) -> str:
    """Render the whole page.

    Args:
        overview: Contents, see `Queries.overview`.
        actions: Whether to show actions.
        local: Whether actions need no token.
    """
    ready = overview["ready"]
    access = _NO_MARKUP if local else Html(_ACCESS_FORM if actions else _NO_ACTIONS)
    models = join(_model(index, model, actions) for index, model in enumerate(overview["models"]))
    return fill(
        _PAGE,
        state="ready" if ready else "not ready",
        mood="good" if ready else "bad",
        started=overview["started_at"],
        drop=overview["drop_dir"],
        access=access,
        models=models,
        updates=_updates(overview["updates"]),
    )


def _model(number: int, model: JSON, actions: bool) -> Html:
    samples: Sequence[Sample] = model["samples"]
    facts = [(name, value) for name, value in _facts(model) if value is not None]
    return fill(
        _MODEL,
        number=number,
        name=model["name"],
        badges=_badges(model),
        problem=fill('<p class="problem">{text}</p>', text=model["problem"]) if model["problem"] else _NO_MARKUP,
        facts=join(fill("<div><dt>{name}</dt><dd>{value}</dd></div>", name=n, value=v) for n, v in facts),
        # The name is one of the config, which allows nothing that a URL would have to escape.
        actions=fill(_ACTIONS, model=model["name"]) if actions else _NO_MARKUP,
        latency=_latency(samples),
        memory=_memory(samples),
        layers=_layers(model["layers"]),
    )


def _badges(model: JSON) -> Html:
    serving = ("serving", "good") if model["ready"] else ("not serving", "bad")
    held = [(key, "warn") for key in ("pinned", "paused") if model[key]]
    probation = [("on probation", "warn")] if model["probation"] else []
    shown = [serving, *held, *probation]
    return join(fill('<span class="badge {mood}">{text}</span>', text=text, mood=mood) for text, mood in shown)


def _facts(model: JSON) -> list[tuple[str, object]]:
    live = model["live"] or {}
    return [
        ("Generation", model["generation"]),
        ("Bits", live.get("bits")),
        ("Runtime", live.get("runtime")),
        ("Architecture", live.get("architecture")),
        ("Made from", live.get("file_name")),
        ("Agreement", None if live.get("agreement") is None else f"{live['agreement']:.1f} %"),
        ("Artifact", None if live.get("artifact_bytes") is None else format_bytes(live["artifact_bytes"])),
        ("Memory", format_bytes(model["rss_bytes"]) if model["rss_bytes"] else None),
        ("Restarts", model["restarts"] or None),
        ("Waiting in the drop folder", model["held"] or None),
    ]


def _latency(samples: Sequence[Sample]) -> Html:
    now, span_s = _span(samples)
    series = [(name, [(s.at - now, getattr(s, f"{name}_s")) for s in samples]) for name in ("p50", "p99")]
    timed = [s.p99_s for s in samples if s.p99_s is not None]
    said = f"at most {1000 * max(timed):.1f} ms at the 99th percentile" if timed else "no requests"
    label = f"Latency over the last hour: {said}"
    return lines(series, span_s, lambda seconds: f"{1000 * seconds:.3g} ms", label)


def _memory(samples: Sequence[Sample]) -> Html:
    now, span_s = _span(samples)
    points = [(s.at - now, float(s.memory_bytes) if s.memory_bytes else None) for s in samples]
    label = f"Memory over the last hour: now {format_bytes(samples[-1].memory_bytes) if samples else 'unknown'}"
    return lines([("memory", points)], span_s, format_bytes, label)


def _span(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the time of the newest sample, and the seconds that a chart covers: an hour, less after a start."""
    if not samples:
        return 0.0, _LEAST_SPAN_S
    return samples[-1].at, min(KEEP_S, max(_LEAST_SPAN_S, samples[-1].at - samples[0].at))


def _layers(layers: Sequence[JSON]) -> Html:
    if not layers:
        return Html('<p class="note">nothing is live</p>')
    worst = max(layers, key=lambda layer: float(layer["relative_loss"]))
    label = f"Loss of {len(layers)} layers; the highest is {worst['relative_loss']:.3g}, of {worst['name']}"
    rows = join(
        fill(
            "<tr><th scope='row'>{name}</th><td>{bits}</td><td>{loss}</td></tr>",
            name=layer["name"],
            bits=layer.get("bits"),
            loss=f"{layer['relative_loss']:.3g}",
        )
        for layer in layers
    )
    return fill(
        "{chart}<details><summary>As a table</summary><table><thead><tr><th scope='col'>Layer</th>"
        "<th scope='col'>Bits</th><th scope='col'>Loss</th></tr></thead><tbody>{rows}</tbody></table></details>",
        chart=bars([(str(layer["name"]), float(layer["relative_loss"])) for layer in layers], label),
        rows=rows,
    )


def _updates(updates: Sequence[JSON]) -> Html:
    if not updates:
        return Html('<p class="note">no updates yet</p>')
    return fill(_UPDATES, rows=join(_update(update) for update in updates))


def _update(update: JSON) -> Html:
    progress: JSON = update.get("progress") or {}
    doing = " ".join(str(progress[key]) for key in ("stage", "done") if progress.get(key))
    return fill(
        _UPDATE,
        id=update["id"],
        model=update["model"],
        file=update["file_name"],
        state=update["state"],
        mood=MOODS.get(update["state"], "plain"),
        generation=update["generation"],
        stages=_stages(update["stages"]),
        note=f"{update['code']}: {update['reason']}" if update["code"] else doing,
    )


def _stages(stages: Mapping[str, float]) -> Html:
    if not stages:
        return Html("-")
    rows = join(
        fill("<div><dt>{name}</dt><dd>{took}</dd></div>", name=name, took=format_seconds(seconds))
        for name, seconds in stages.items()
    )
    return fill(
        "<details><summary>{total}</summary><dl>{rows}</dl></details>",
        total=format_seconds(sum(stages.values())),
        rows=rows,
    )
