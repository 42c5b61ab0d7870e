"""The page at /: the contents of `edged status` and `edged history`, and charts. Pure; all external text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.http.model_panel import digest_with_button, model_panel
from service.http.queue_panel import queue_panel, unclaimed_panel
from service.journal.states import RETRIABLE
from service.reporting.html import MOODS, Html, definitions, fill, join, moment, with_moments
from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

DOCUMENTATION = "https://github.com/edged/edged/tree/main/docs"
_NO_MARKUP = Html("")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>edged on {host}: {state}</title>
<link rel="stylesheet" href="/static/status.css">
<link rel="icon" href="data:,">
<script type="module" src="/static/status.js"></script>
</head>
<body>
<header class="top">
<h1>edged <span class="badge {mood}">{state}</span></h1>
<dl class="inline">{device}</dl>
<nav aria-label="More"><a href="/metrics">Metrics</a> <a href="{documentation}" rel="noreferrer">Documentation</a></nav>
{access}
</header>
<p id="message" role="status" aria-live="polite" data-kept></p>
<main>
{problems}
{queue}
{unclaimed}
{models}
<section aria-labelledby="updates"><h2 id="updates">Last updates</h2>{updates}</section>
</main>
</body>
</html>
"""
_PROBLEMS = """<section aria-labelledby="problems"><h2 id="problems">State folder</h2>
<ul class="unclaimed">{rows}</ul></section>"""
_ACCESS_FORM = """<form id="access" class="scripted"><label>Token
<input id="token" type="password" autocomplete="off"></label> <span class="note">for {purpose}</span></form>"""
_NO_ACTIONS = '<p class="note">Actions need serve.token_file; or use the commands.</p>'
_NO_SCRIPT = '<noscript><p class="note">Actions need JavaScript; or use the commands.</p></noscript>'
_UPDATES = """<div class="scroll" tabindex="0" role="region" aria-labelledby="updates"><table>
<thead><tr><th scope="col">Update</th><th scope="col">Model</th><th scope="col">File</th><th scope="col">SHA-256</th>
<th scope="col">State</th><th scope="col">Generation</th><th scope="col">Dropped</th><th scope="col">Stages</th>
<th scope="col">Note</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""
_UPDATE = """<tr data-key="update-{id}">
<th scope="row"><a href="/edged/v1/updates/{id}/report" aria-label="Report of update {id}">{id}</a></th>
<td>{model}</td><td class="name">{file}</td><td>{digest}</td>
<td><span class="badge {mood}">{state}</span></td><td>{generation}</td><td>{dropped}</td><td>{stages}</td>
<td class="name note">{note} {retry}</td></tr>"""
_RETRY = """<button type="button" class="scripted quiet" data-post="/edged/v1/updates/{id}/retry"
aria-label="Retry update {id}">Retry</button>"""
_RETRIABLE = {state.value for state in RETRIABLE} | {"DEFERRED"}


@dataclass(frozen=True)
class Rights:
    """What the viewer of a page may do.

    Attributes:
        actions: Whether to show actions.
        local: Whether nothing needs a token, because the page is served through the UNIX socket.
        inference_token: Whether inference needs a token.
    """

    actions: bool
    local: bool
    inference_token: bool = False


def render(overview: JSON, rights: Rights) -> str:
    """Render the whole page.

    Args:
        overview: Contents, see `Supervisor.overview`.
        rights: What the viewer may do.
    """
    ready = overview["ready"]
    ended: dict[str, JSON] = {}
    for update in overview["updates"]:  # the newest first
        ended.setdefault(update["model"], update)
    common = {key: overview[key] for key in ("drop_dir", "address")} | {"inference_token": rights.inference_token}
    panels = (
        model_panel(number, {**model, **common}, ended.get(model["name"]), rights.actions)
        for number, model in enumerate(overview["models"])
    )
    return fill(
        _PAGE,
        host=overview.get("host") or "this device",
        state="ready" if ready else "not ready",
        mood="good" if ready else "bad",
        device=definitions(_device(overview)),
        documentation=DOCUMENTATION,
        access=_access(rights),
        problems=_problems(overview.get("state_problems") or []),
        queue=queue_panel(overview, actions=rights.actions),
        unclaimed=unclaimed_panel(overview.get("unclaimed") or []),
        models=join(panels),
        updates=_updates(overview["updates"], rights.actions),
    )


def _access(rights: Rights) -> Html:
    if rights.local:
        return Html(_NO_SCRIPT)
    needs = [
        *(["actions, see serve.token_file"] if rights.actions else []),
        *(["inference, see serve.inference_token_file"] if rights.inference_token else []),
    ]
    form = fill(_ACCESS_FORM, purpose="; ".join(needs)) if needs else _NO_MARKUP
    return join([form, Html(_NO_SCRIPT if rights.actions else _NO_ACTIONS)])


def _problems(found: Sequence[str]) -> Html:
    """Return what is wrong with the state folder, and what was repaired in it."""
    if not found:
        return _NO_MARKUP
    return fill(_PROBLEMS, rows=join(fill("<li>{text}</li>", text=text) for text in found))


def _device(overview: JSON) -> list[tuple[str, object]]:
    device: JSON = overview.get("device") or {}
    return [
        ("Host", overview.get("host")),
        ("Version", overview.get("version")),
        ("Up since", moment(overview["started_at"])),
        ("Disk free", _disk(device)),
        ("Temperature", _temperature(device)),
        ("Drop folder", fill("<code>{path}</code>", path=overview["drop_dir"])),
    ]


def _disk(device: JSON) -> str | None:
    if device.get("disk_free_bytes") is None:
        return None
    return f"{format_bytes(device['disk_free_bytes'])} of {format_bytes(device['disk_total_bytes'])}"


def _temperature(device: JSON) -> Html | None:
    celsius, limit = device.get("temperature_c"), device.get("temperature_limit_c")
    if celsius is None:
        return None
    hot = limit is not None and celsius >= limit - 5
    title = f"{device['zone']}, the hottest zone" + ("" if limit is None else f"; the limit is {limit:.0f} °C")
    text = f"{celsius:.0f} °C" + (", near its limit" if hot else "")
    return fill(
        '<span class="{mood}" title="{title}">{text}</span>', mood="warn" if hot else "", title=title, text=text
    )


def _updates(updates: Sequence[JSON], actions: bool) -> Html:
    if not updates:
        return Html('<p class="note">no updates yet</p>')
    return fill(_UPDATES, rows=join(_update(update, actions) for update in updates))


def _update(update: JSON, actions: bool) -> Html:
    digest = update.get("sha256")
    retry = fill(_RETRY, id=update["id"]) if actions and digest and update["state"] in _RETRIABLE else _NO_MARKUP
    return fill(
        _UPDATE,
        id=update["id"],
        model=update["model"],
        file=update["file_name"],
        digest=digest_with_button(digest, f"update {update['id']}") if digest else None,
        state=update["state"],
        mood=MOODS.get(update["state"], "plain"),
        generation=update["generation"],
        dropped=moment(update["dropped_at"]),
        stages=_stages(update["stages"]),
        note=with_moments(f"{update['code']}: {update['reason']}") if update["code"] else "",
        retry=retry,
    )


def _stages(stages: Mapping[str, float]) -> Html:
    if not stages:
        return Html("-")
    return fill(
        "<details><summary>{total}</summary><dl>{rows}</dl></details>",
        total=format_seconds(sum(stages.values())),
        rows=definitions((name, format_seconds(seconds)) for name, seconds in stages.items()),
    )
