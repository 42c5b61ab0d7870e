"""One model of the status page: its figures, charts, an image to try, and its actions, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.daemon.samples import EVERY_S, KEEP_S, Sample
from service.reporting.candidates import HEAD
from service.reporting.charts import bars, lines
from service.reporting.html import Html, definitions, fill, join, moment
from service.units import format_bytes, three_digits

JSON = Mapping[str, Any]

_LEAST_SPAN_S = 600.0
_SHOWN_DIGITS = 12  # of a digest
_PROBLEMS = ("REJECTED", "FAILED", "ROLLED_BACK")  # states of an update that its model's panel mentions
_NO_MARKUP = Html("")
_MODEL = """<section class="model" data-key="model-{name}" aria-labelledby="model-{number}">
<div class="head"><h2 id="model-{number}">{name} {badges}</h2>{actions}</div>
{notes}
{live}
</section>"""
_LIVE = """<dl class="stats">{stats}</dl>
<div class="charts">
<figure>
<figcaption>Latency: <span class="key p50">median</span>, <span class="key p99">99th percentile</span></figcaption>
{latency}</figure>
<figure>
<figcaption>Each second: <span class="key requests">requests</span>, <span class="key errors">errors</span></figcaption>
{rates}</figure>
<figure><figcaption>Memory of the serving process</figcaption>{memory}</figure>
{layers}
</div>
{candidates}
{attempt}
<details class="curl"><summary>With curl</summary><code>{curl}</code></details>
<dl class="facts">{facts}</dl>"""
_NOTHING_LIVE = """<p class="empty">Nothing is live. Copy a checkpoint of a ResNet or a YOLOv5 to
<code>{drop}/{model}/</code>: it is quantized, checked and put in service.</p>"""
_LAYERS = """<figure class="wide">
<figcaption>Loss of each layer, as a share of its output's energy
<output class="readout" data-kept></output></figcaption>
<div class="scroll bars" tabindex="0" role="group" aria-label="Loss of each layer of {model}; arrow keys read the bars">
{chart}</div>
<details><summary>As a table</summary><table><thead><tr><th scope="col">Layer</th><th scope="col">Bits</th>
<th scope="col">Loss</th></tr></thead><tbody>{rows}</tbody></table></details></figure>"""
_CANDIDATES = """<details data-key="candidates-{model}"><summary>Candidates to serve, as they were measured</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Candidates to serve {model}">
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"""
_ACTIONS = """<div class="actions scripted">{rollback}
<form class="drop" data-target="/edged/v1/models/{model}/drop"><label>New checkpoint
<input type="file" required></label> <button aria-label="Drop for {model}">Drop</button></form>
</div>"""
_ROLLBACK = """<button type="button" data-post="/edged/v1/models/{model}/rollback"
aria-label="Roll back {model} to generation {generation}" title="{title}">Roll back to generation {generation}</button>
<span class="note">made from {file}</span>"""
_NO_ROLLBACK = """<button type="button" disabled aria-label="Roll back {model}">Roll back</button>
<span class="note">{why}</span>"""
_TRY = """<div class="try scripted" data-model="{model}" data-key="try-{model}">
<label class="dropzone">Try an image: drop a photo here, or choose one
<input type="file" accept="image/*" aria-label="Image to try with {model}"></label>
<div class="answer" role="status" aria-live="polite" data-kept></div></div>"""
_DIGEST = """<span class="digest"><code title="{digest}">{short}</code>
<button type="button" class="scripted quiet" data-copy="{digest}" aria-label="Copy the SHA-256 of {what}">Copy</button>
</span>"""


def model_panel(number: int, model: JSON, last: JSON | None, actions: bool) -> Html:
    """Return the section of one model.

    Args:
        number: Position of the model on the page.
        model: Contents, see `Queries.detailed_models`; and "drop_dir", "address", and "inference_token", whether
            inference needs a token.
        last: The newest update of the model; None without one.
        actions: Whether to show actions.
    """
    return fill(
        _MODEL,
        number=number,
        name=model["name"],
        badges=_badges(model),
        # The name is one of the config, which allows nothing that a URL would have to escape.
        actions=_actions(model) if actions else _NO_MARKUP,
        notes=_notes(model, last),
        live=_live(model) if model["generation"] is not None else _nothing_live(model),
    )


def digest_with_button(digest: str, what: str) -> Html:
    """Return the first digits of a digest, and a button that copies all of them.

    Args:
        digest: SHA-256 in hex.
        what: Name of its file for screen readers, for example "update 3".
    """
    return fill(_DIGEST, digest=digest, short=digest[:_SHOWN_DIGITS], what=what)


def _badges(model: JSON) -> Html:
    serving = ("serving", "good") if model["ready"] else ("not serving", "bad")
    held = [(key, "warn") for key in ("pinned", "paused") if model[key]]
    probation = [("on probation", "warn")] if model["probation"] else []
    shown = [serving, *held, *probation]
    return join(fill('<span class="badge {mood}">{text}</span>', text=text, mood=mood) for text, mood in shown)


def _actions(model: JSON) -> Html:
    target: JSON | None = model.get("rollback")
    if target is None or model["pinned"]:
        before = "no generation before this one" if model["generation"] else "nothing is live"
        why = "pinned" if model["pinned"] else before
        rollback = fill(_NO_ROLLBACK, model=model["name"], why=why)
    else:
        file = target.get("file_name") or "unknown file"
        title = f"Puts generation {target['generation']} in service again, which was made from {file}"
        rollback = fill(_ROLLBACK, model=model["name"], generation=target["generation"], title=title, file=file)
    return fill(_ACTIONS, rollback=rollback, model=model["name"])


def _notes(model: JSON, last: JSON | None) -> Html:
    notes = []
    if model["problem"]:
        notes.append(fill('<p class="problem">{text}</p>', text=model["problem"]))
    if last is not None and last["state"] in _PROBLEMS:
        notes.append(
            fill(
                '<p class="problem"><a href="/edged/v1/updates/{id}/report">Update {id}</a>, {file}: {state}'
                " ({code}: {reason})</p>",
                id=last["id"],
                file=last["file_name"],
                state=last["state"],
                code=last["code"],
                reason=last["reason"],
            )
        )
    return join(notes)


def _nothing_live(model: JSON) -> Html:
    return fill(_NOTHING_LIVE, drop=model["drop_dir"], model=model["name"])


def _live(model: JSON) -> Html:
    samples: Sequence[Sample] = model["samples"]
    return fill(
        _LIVE,
        stats=definitions(_stats(model)),
        latency=_latency(samples),
        rates=_rates(samples),
        memory=_memory(samples),
        layers=_layers(model["name"], model["layers"]) if model["layers"] else _NO_MARKUP,
        candidates=_candidates(model["name"], (model["live"] or {}).get("candidates") or []),
        attempt=fill(_TRY, model=model["name"]),
        curl=_curl(model),
        facts=definitions(_facts(model)),
    )


def _candidates(model: str, candidates: Sequence[JSON]) -> Html:
    if not candidates:
        return _NO_MARKUP
    head = join(fill('<th scope="col">{name}</th>', name=name) for name in HEAD)
    row = '<tr><th scope="row">{first}</th>{rest}</tr>'
    cells = [[str(cell) for cell in candidate.values()] for candidate in candidates]
    rows = (fill(row, first=c[0], rest=join(fill("<td>{cell}</td>", cell=cell) for cell in c[1:])) for c in cells)
    return fill(_CANDIDATES, model=model, head=head, rows=join(rows))


def _curl(model: JSON) -> str:
    token = " -H 'Authorization: Bearer TOKEN'" if model.get("inference_token") else ""
    infer = f"{model['address']}/v2/models/{model['name']}/infer"
    return f"curl -F image=@photo.jpg{token} {infer}"


def _stats(model: JSON) -> list[tuple[str, object]]:
    live: JSON = model["live"] or {}
    samples: Sequence[Sample] = model["samples"]
    now = samples[-1] if samples else None
    return [
        ("Generation", model["generation"]),
        *((name.capitalize() if name.islower() else name, _figure(text)) for name, text in live.get("figures") or []),
        ("Requests", None if now is None else _per_second(now.requests / EVERY_S)),
        ("Errors", None if now is None else _errors(samples)),
        ("Latency p99", _last_latency(samples)),
        ("Memory", format_bytes(model["rss_bytes"]) if model["rss_bytes"] else None),
    ]


def _errors(samples: Sequence[Sample]) -> Html:
    now, failures = samples[-1].failures, sum(sample.failures for sample in samples)
    markup = '<span class="{mood}">{rate}</span> <small>{sum} in the last hour</small>'
    return fill(markup, mood="bad" if now else "", rate=_per_second(now / EVERY_S), sum=failures)


def _last_latency(samples: Sequence[Sample]) -> str | None:
    timed = [sample.p99_s for sample in samples if sample.p99_s is not None]
    return _milliseconds(timed[-1]) if timed else None


def _figure(text: str) -> Html:
    """Return a figure such as "86.25 % (full precision 87.00 %, drop +0.75)", its second part small."""
    number, percent, rest = text.partition(" %")
    return fill("{number}{percent} <small>{rest}</small>", number=number, percent=percent, rest=rest.strip(" ()"))


def _facts(model: JSON) -> list[tuple[str, object]]:
    live: JSON = model["live"] or {}
    made_at, digest = live.get("made_at"), live.get("sha256")
    return [
        ("Made from", live.get("file_name")),
        ("SHA-256", digest_with_button(digest, f"the checkpoint of {model['name']}") if digest else None),
        ("Made at", moment(_utc(made_at)) if made_at else None),
        ("Architecture", live.get("architecture")),
        ("Weights", live.get("weights")),
        ("Reading", live.get("reading")),
        ("Bits", live.get("bits")),
        ("Runtime", ", ".join(filter(None, (live.get("runtime"), live.get("precision")))) or None),
        ("Layers in float", ", ".join(live.get("layers_in_float") or []) or None),
        ("Artifact", None if live.get("artifact_bytes") is None else format_bytes(live["artifact_bytes"])),
        ("Restarts", model["restarts"] or None),
        ("Waiting in the drop folder", model["held"] or None),
    ]


def _utc(at: str) -> str:
    return at.replace("+00:00", "Z")


def _latency(samples: Sequence[Sample]) -> Html:
    now, span_s = _span(samples)
    series = [(name, [(s.at - now, getattr(s, f"{name}_s")) for s in samples]) for name in ("p50", "p99")]
    timed = [s.p99_s for s in samples if s.p99_s is not None]
    said = f"at most {1000 * max(timed):.1f} ms at the 99th percentile" if timed else "no requests"
    label = f"Latency over the last hour: {said}"
    return lines(series, span_s, _milliseconds, label)


def _rates(samples: Sequence[Sample]) -> Html:
    now, span_s = _span(samples)
    series = [
        ("requests", [(s.at - now, s.requests / EVERY_S) for s in samples]),
        ("errors", [(s.at - now, s.failures / EVERY_S) for s in samples]),
    ]
    requests, failures = (sum(getattr(s, name) for s in samples) for name in ("requests", "failures"))
    label = f"Requests over the last hour: {requests}, of which {failures} failed"
    return lines(series, span_s, _per_second, label)


def _memory(samples: Sequence[Sample]) -> Html:
    now, span_s = _span(samples)
    points = [(s.at - now, float(s.memory_bytes) if s.memory_bytes else None) for s in samples]
    label = f"Memory over the last hour: now {format_bytes(samples[-1].memory_bytes) if samples else 'unknown'}"
    return lines([("memory", points)], span_s, format_bytes, label, base=1024)


def _milliseconds(seconds: float) -> str:
    return f"{three_digits(1000 * seconds)} ms"


def _per_second(rate: float) -> str:
    return f"{three_digits(rate)} /s"


def _span(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the time of the newest sample, and the seconds that a chart covers: an hour, less after a start."""
    if not samples:
        return 0.0, _LEAST_SPAN_S
    return samples[-1].at, min(KEEP_S, max(_LEAST_SPAN_S, samples[-1].at - samples[0].at))


def _layers(model: str, layers: Sequence[JSON]) -> Html:
    worst = max(layers, key=lambda layer: float(layer["relative_loss"]))
    label = f"Loss of {len(layers)} layers; the highest is {worst['relative_loss']:.3g}, of {worst['name']}"
    rows = join(
        fill(
            '<tr><th scope="row">{name}</th><td>{bits}</td><td>{loss}</td></tr>',
            name=layer["name"],
            bits=layer.get("bits"),
            loss=f"{layer['relative_loss']:.3g}",
        )
        for layer in layers
    )
    chart = bars([(str(layer["name"]), float(layer["relative_loss"])) for layer in layers], label)
    return fill(_LAYERS, model=model, chart=chart, rows=rows)
