"""Answers of the daemon as text for people. Pure; every key may be missing, as an older daemon may have sent them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from service.units import format_bytes, format_seconds, iso_time

JSON = Mapping[str, Any]

_KINDS = ".pt, .pth, .th, .ckpt, .bin or .safetensors of a ResNet or a YOLOv5"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose columns are aligned to the left, two blanks apart."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def status(answer: JSON) -> str:
    """Return the answer to `edged status`."""
    state = "ready" if answer.get("ready") else "not ready"
    lines = [f"edged is {state} since {answer.get('started_at', '?')}; drop folder {answer.get('drop_dir', '?')}", ""]
    if answer.get("state_problems"):
        lines += [*answer["state_problems"], ""]
    models = answer.get("models", [])
    lines.append(table(["MODEL", "STATE", "GENERATION", "FILE", "BITS", "ENGINE", "NOTE"], map(_model_row, models)))
    if answer.get("queue"):
        lines += ["", queue(answer["queue"])]
    elif answer.get("updates"):  # of an older daemon
        lines += ["", updates(answer["updates"])]
    return "\n".join([*lines, *_unclaimed(answer), *_first_steps(answer)])


def fresh_models(answer: JSON) -> list[tuple[str, str]]:
    """Return the models without a generation for which nothing is on its way, each with its folder for drops."""
    busy = {update.get("model") for update in answer.get("updates", [])}
    return [
        (str(model.get("name")), f"{answer['drop_dir']}/{model.get('name')}/")
        for model in answer.get("models", [])
        if model.get("generation") is None and model.get("current") is None and not model.get("problem")
        if model.get("name") not in busy and not model.get("held") and not model.get("paused")
        if "drop_dir" in answer
    ]


def _first_steps(answer: JSON) -> Iterator[str]:
    """Yield where to drop what, for models that never had a generation."""
    fresh = fresh_models(answer)
    if not fresh:
        return
    sidecar = ", with its .sha256 next to it" if answer.get("require_checksum") else ""
    names = {name for name, _ in fresh}
    if any(model.get("signed") and model.get("name") in names for model in answer.get("models", [])):
        sidecar += ", with its signature (`edged sign`) where the model has trust.keys"
    yield ""
    yield f"To put a first generation in service, drop a checkpoint ({_KINDS}){sidecar}:"
    width = max(len(name) for name, _ in fresh)
    yield from (f"  {name.ljust(width)}  into {folder}" for name, folder in fresh)
    yield f"or run for example `edged submit FILE --model {fresh[0][0]} --wait`; `edged inspect FILE` checks a file."


def _unclaimed(answer: JSON) -> Iterator[str]:
    """Yield what is in the drop folder and is not taken."""
    if answer.get("unclaimed"):
        rows = [[entry.get("path"), entry.get("reason")] for entry in answer["unclaimed"]]
        yield from ("", table(["NOT TAKEN", "REASON"], rows))


def queue(rows: Sequence[JSON]) -> str:
    """Return a table of the updates that have not ended: first what runs, then what waits, since when and for what."""
    header = ["UPDATE", "MODEL", "FILE", "STATE", "SINCE", "NOTE"]
    return table(header, [_queue_row(row) for row in rows])


def updates(listed: Sequence[JSON]) -> str:
    """Return a table of updates."""
    header = ["UPDATE", "MODEL", "FILE", "STATE", "GENERATION", "SECONDS", "NOTE"]
    return table(header, [_update_row(update) for update in listed])


def history(answer: JSON) -> str:
    """Return the answer to `edged history MODEL`."""
    current, previous = answer.get("current"), answer.get("previous")
    first = f"{answer.get('model')}: generation {_or_dash(current)} is live, {_or_dash(previous)} is the previous one"
    if answer.get("generations"):
        first += f"; kept: {', '.join(map(str, answer['generations']))}"
    listed = sorted([*answer.get("updates", []), *answer.get("unpublished", [])], key=_newest_first)
    return first + ("\n\n" + updates(listed) if listed else "\n\nno updates yet")


def rollback(answer: JSON) -> str:
    """Return the answer to `edged rollback`."""
    first = f"{answer.get('model')}: generation {answer.get('to')} is live again, in place of {answer.get('from')}"
    return "\n".join([first, *(f"warning: {text}" for text in answer.get("warnings", []))])


def hold(answer: JSON) -> str:
    """Return the answer to `edged pin`, `unpin`, `pause` and `resume`: the holds that are set now."""
    generation = _or_dash(answer.get("generation"))
    pinned = f"pinned to generation {generation}" if answer.get("pinned") else "not pinned"
    return f"{answer.get('model')}: {pinned}, {'paused' if answer.get('paused') else 'not paused'}"


def retry(answer: JSON) -> str:
    """Return the answer to `edged retry`."""
    what = f"{answer.get('file_name')} for {answer.get('model')}"
    if answer.get("state") == "DEFERRED":
        return f"update {answer.get('update')} is tried again now: {what}"
    return f"update {answer.get('update')} takes {what} again; follow it with `edged status`"


def cancel(answer: JSON) -> str:
    """Return the answer to `edged cancel`."""
    ended = f"update {answer.get('update')} of {answer.get('model')} is cancelled"
    return f"{ended}; {answer.get('file_name')} is kept as {answer.get('kept')}/file"


def garbage(answer: JSON) -> str:
    """Return the answer to `edged gc`: a line for each thing that was or would be removed."""
    listed = answer.get("removed", [])
    lines = [f"{format_bytes(entry['bytes']):>10}  {entry['kind']:11}  {entry['path']}" for entry in listed]
    verb = "would be removed" if answer.get("dry_run") else "removed"
    lines.append(f"{verb}: {len(listed)}, {format_bytes(answer.get('bytes', 0))}")
    if answer.get("skipped"):
        lines.append(f"skipped {answer['skipped']}")
    return "\n".join(lines)


def outcome(update: JSON) -> str:
    """Return how one update ended, with its measurements and the seconds of its stages."""
    from service.reporting.candidates import served_by
    from service.reporting.facts import measurements, signature  # 4 ms, for this one answer
    from service.reporting.parts import if_whole

    lines = [f"update {update.get('id')} of {update.get('model')}: {update.get('state')}"]
    if update.get("generation"):
        lines[0] += f", generation {update['generation']}"
    if update.get("reason"):
        lines.append(f"  {update.get('code')}: {update['reason']}")
    if update.get("state") == "DEFERRED" and update.get("retry_at"):
        lines.append(f"  tried or checked again at {update['retry_at']}")
    lines += [f"  {'signature':10} {signed}" for signed in filter(None, [signature(update)])]
    report: JSON = update.get("report") or {}
    lines += [f"  {name:10} {value}" for name, value in measurements(report)]
    if (served := if_whole("the engine", partial(served_by, report), None)) is not None:
        lines.append(f"  {'served by':10} {served}")
    for key in ("swap", "rollback"):
        if report.get(key):
            lines.append(f"  {key:10} {if_whole(key, partial(_swap, report[key]), 'unknown')}")
    stages: JSON = update.get("stages") or {}
    lines += [f"  {stage:10} {format_seconds(seconds)}" for stage, seconds in stages.items()]
    return "\n".join(lines)


def check(found: JSON) -> str:
    """Return one check of `edged doctor`."""
    text = f"{found['level']:4}  {found['name']}: {found['detail']}"
    return f"{text}\n      -> {found['fix']}" if found.get("fix") else text


def _swap(swap: JSON) -> str:
    """Return by which policy a swap was made, and why; every key may be missing."""
    text = f"by {swap.get('policy')}"
    if swap.get("free_bytes") is not None and swap.get("needed_bytes") is not None:
        text += f" ({format_bytes(swap['free_bytes'])} free, {format_bytes(swap['needed_bytes'])} needed for a second)"
    if warmup := swap.get("warmup"):
        alike = "to the bit" if warmup.get("identical") else f"to {warmup.get('relative_error', float('nan')):.1g}"
        text += f"; outputs as evaluated, {alike}"
    return f"{text}; {swap['renamed']}" if swap.get("renamed") else text


def _queue_row(row: JSON) -> list[object]:
    since, waiting_for = row.get("since"), row.get("waiting_for")
    when = "-" if since is None else iso_time(since)
    note = (
        _progress(row)
        if waiting_for is None
        else f"waits for {waiting_for}"
        if row.get("state") == "QUEUED"
        else waiting_for
    )
    return [row.get("update"), row.get("model"), row.get("file"), row.get("state"), when, note]


def _update_row(update: JSON) -> list[object]:
    stages: JSON = update.get("stages") or {}
    seconds = f"{sum(stages.values()):.1f}" if stages else "-"
    note = f"{update['code']}: {update.get('reason')}" if update.get("code") else _progress(update) or _signed(update)
    if update.get("state") == "DEFERRED" and update.get("retry_at"):
        note += f" (again at {update['retry_at']})"
    generation = _or_dash(update.get("generation"))
    return [
        update.get("id"),
        update.get("model"),
        update.get("file_name"),
        update.get("state"),
        generation,
        seconds,
        note,
    ]


def _signed(update: JSON) -> str:
    """Return which version was signed and with which key, for an update that has nothing more important to say."""
    signed: JSON = update.get("signature") or {}
    return f"version {signed.get('version')}, signed with {signed.get('key')}" if signed else ""


def _newest_first(update: JSON) -> float:
    return -float(update.get("id") or 0)


def _progress(update: JSON) -> str:
    progress: JSON = update.get("progress") or {}
    if not progress:
        return ""
    total = progress.get("total")
    text = f"{progress.get('stage')} {progress.get('done')}/{total}" if total else str(progress.get("stage", ""))
    return f"{text}; waits for {progress['waits_for']}" if progress.get("waits_for") else text


def model_state(model: JSON) -> str:
    """Return how a model is served, in a word or two."""
    state = model.get("state")
    return str(state) if state else "serving" if model.get("ready") else "not serving"


def _model_row(model: JSON) -> list[object]:
    serves = [_or_dash(model.get(key)) for key in ("generation", "file_name")]
    return [
        model.get("name"),
        model_state(model),
        *serves,
        _bits(model),
        _or_dash(model.get("runtime")),
        _problem(model),
    ]


def _bits(model: JSON) -> str:
    """Return the bits of weights and activations, for example "4, activations 8"."""
    activations = model.get("activation_bits")
    return _or_dash(model.get("bits")) + (f", activations {activations}" if activations is not None else "")


def _problem(model: JSON) -> str:
    notes = [key for key in ("pinned", "paused") if model.get(key)]
    if model.get("held"):
        notes.append(f"{model['held']} in the drop folder")
    return ", ".join([*notes, *filter(None, [model.get("problem")])])


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
