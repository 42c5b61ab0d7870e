"""What runs, what waits, and what of the drop folder was not taken, as HTML. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.journal.states import GOING_LIVE, UPDATE_STAGES
from service.reporting.html import MOODS, Html, fill, join, moment, with_moments
from service.units import format_seconds, iso_time

JSON = Mapping[str, Any]

_COUNTED = {"calibrate": "images", "predict": "images"}  # by the worker in a stage; the stage "layers" counts these
# An update that is in the drop folder is cancelled there; one that goes live is rolled back instead.
_NOT_TO_CANCEL = {"DROPPED", "SETTLED"} | {state.value for state in GOING_LIVE}
_WAITING_STATES = ("QUEUED", "DEFERRED")
_PANEL = """<section aria-labelledby="queue"><h2 id="queue">Running and waiting</h2>{rows}</section>"""
_IDLE = """<p class="note">Nothing runs or waits. A checkpoint that is copied to
<code>{drop}/</code>, into the folder of its model, is next.</p>"""
_ROW = """<li class="{kind}" data-key="update-{id}">
<p class="what"><span class="badge {mood}">{state}</span> <a href="/edged/v1/updates/{id}/report">update {id}</a> of
<strong>{model}</strong>: <code>{file}</code> <span class="note">{since}</span> {cancel}</p>
{detail}</li>"""
_CANCEL = """<button type="button" class="scripted quiet" data-post="/edged/v1/updates/{id}/cancel"
aria-label="Cancel update {id}">Cancel</button>"""
_PROGRESS = """<div class="now"><progress value="{done}" max="{total}" aria-label="{stage} of update {id}"></progress>
<span>{stage} <b>{done}/{total}</b> {unit}</span></div>"""
_STEP = '<li class="{kind}"{current}>{name}</li>'
_UNCLAIMED = """<section aria-labelledby="unclaimed"><h2 id="unclaimed">Not taken from the drop folder</h2>
<ul class="unclaimed">{rows}</ul></section>"""
_NOTHING = Html("")


def queue_panel(overview: JSON, *, actions: bool = False, clock: Callable[[], float] = time.time) -> Html:
    """Return the section of the update that runs and of those that wait.

    Args:
        overview: Contents of the page: the queue, the open updates, and the drop folder.
        actions: Whether to show actions.
        clock: Function that returns the seconds since 1970.
    """
    rows: Sequence[JSON] = overview["queue"]
    if not rows:
        return fill(_PANEL, rows=fill(_IDLE, drop=overview["drop_dir"]))
    updates = {update["id"]: update for update in overview.get("open") or []}
    listed = join(_row(row, updates.get(row["update"], {}), clock(), actions) for row in rows)
    return fill(_PANEL, rows=fill('<ol class="queue">{listed}</ol>', listed=listed))


def unclaimed_panel(found: Sequence[JSON], clock: Callable[[], float] = time.time) -> Html:
    """Return the section of what was not taken from the drop folder; empty if there is nothing.

    Args:
        found: "path", "kind", "reason" and "since" of each file or folder.
        clock: Function that returns the seconds since 1970.
    """
    if not found:
        return _NOTHING
    row = '<li><code>{path}</code> <span class="note">{kind}, {since}</span><br>{reason}</li>'
    now = clock()
    rows = join(
        fill(row, path=each["path"], kind=each["kind"], since=_since(each["since"], now), reason=each["reason"])
        for each in found
    )
    return fill(_UNCLAIMED, rows=rows)


def _row(row: JSON, update: JSON, now: float, actions: bool) -> Html:
    state = row["state"]
    running = state not in _WAITING_STATES and not row.get("waiting_for")
    return fill(
        _ROW,
        kind="running" if running else "waiting",
        id=row["update"],
        model=row["model"],
        file=row["file"],
        state=state,
        mood=MOODS.get(state, "plain"),
        since=_since(row["since"], now),
        cancel=fill(_CANCEL, id=row["update"]) if actions and state not in _NOT_TO_CANCEL else _NOTHING,
        detail=_running(row, update) if running else _waiting(row),
    )


def _waiting(row: JSON) -> Html:
    if not row.get("waiting_for"):
        return _NOTHING
    return fill('<p class="note">waits for {what}</p>', what=with_moments(row["waiting_for"]))


def _running(row: JSON, update: JSON) -> Html:
    progress: JSON = row.get("progress") or update.get("progress") or {}
    stages: Mapping[str, float] = update.get("stages") or {}
    done = max((UPDATE_STAGES.index(name) for name in stages if name in UPDATE_STAGES), default=-1)
    current = UPDATE_STAGES[min(done + 1, len(UPDATE_STAGES) - 1)]
    steps = (
        fill(
            _STEP,
            kind="now" if name == current else "done" if name in stages else "",
            current=Html(' aria-current="step"') if name == current else _NOTHING,
            name=name,
        )
        for name in UPDATE_STAGES
    )
    counted = waits = _NOTHING
    if progress.get("total"):
        counted = fill(_PROGRESS, id=row["update"], unit=_COUNTED.get(progress["stage"], ""), **progress)
    if progress.get("waits_for"):
        waits = fill('<p class="note">its worker waits for {what}</p>', what=progress["waits_for"])
    return fill('<ol class="steps">{steps}</ol>{counted}{waits}', steps=join(steps), counted=counted, waits=waits)


def _since(at: float, now: float) -> Html:
    return fill("since {at}, {seconds}", at=moment(iso_time(at)), seconds=format_seconds(max(0.0, now - at)))
