"""A report as text for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from service.reporting.bits import chosen_bits, tries
from service.reporting.candidates import candidates
from service.reporting.facts import (
    class_name,
    count_text,
    facts,
    layers,
    memory,
    outcome,
    prediction_text,
    stages,
    totals_of,
    worst_first,
)
from service.reporting.parts import if_whole
from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

_WORST_LAYERS = 5
_MEMORY_ROWS = 10
_SHOWN_BOXES = 3
_BAR = 40  # characters
_DAMAGED = "cannot be shown: its file is damaged, or of another version of edged"


def summary(data: JSON, page: str | None) -> str:
    """Return the report as a few screens of text.

    Args:
        data: Data of the update, see `service.reporting.data.gather`.
        page: Path of report.html; None if it was not written.
    """
    ended = outcome(data)
    lines = [f"update {ended.id} of {ended.model}: {ended.state}", f"  {ended.file_name}"]
    if ended.problem:
        lines.append(f"  {ended.problem}")
    known = facts(data)
    width = max((len(name) for name, _ in known), default=0)
    lines += [f"  {name:<{width}}  {value}" for name, value in known]
    for title, rows in (
        ("candidates to serve", _candidates(data)),
        ("stages", _stages(data)),
        ("memory of the worker", _memory(data)),
        ("largest relative loss", _layers(data)),
        ("bits of the layers, with the error of the outputs", _bits(data)),
        ("sample predictions, full precision -> quantized", _predictions(data)),
    ):
        listed = if_whole(title, partial(list, rows), [_DAMAGED])
        if listed:
            lines += ["", title, *(f"  {row}".rstrip() for row in listed)]
    return "\n".join([*lines, *(["", f"page: {page}"] if page else [])])


def _candidates(data: JSON) -> Iterator[str]:
    listed = candidates(totals_of(data))
    width = max((len(candidate.name) for candidate in listed), default=0)
    for candidate in listed:
        yield f"{candidate.name:<{width}}  {candidate.description}"


def _stages(data: JSON) -> Iterator[str]:
    """Yield a row for each stage, with a bar from its start to its end."""
    placed = stages(data)
    whole = max((stage.end_s for stage in placed), default=0.0) or 1.0
    for stage in placed:
        left = round(_BAR * stage.start_s / whole)
        right = max(left + 1, round(_BAR * stage.end_s / whole))
        bar = (" " * min(left, _BAR - 1) + "#" * (min(right, _BAR) - min(left, _BAR - 1))).ljust(_BAR)
        yield f"{stage.name:<10} {bar} {format_seconds(stage.seconds)}"


def _memory(data: JSON) -> Iterator[str]:
    """Yield a row with the peak of each tenth of the worker's time."""
    used = memory(data)
    if used is None:
        return
    most = used.peak_bytes or 1
    for end_s, peak in used.peaks(_MEMORY_ROWS):
        bar = "#" * max(1, round(_BAR * peak / most))
        yield f"{format_seconds(end_s):<10} {bar:<{_BAR}} {format_bytes(peak)}"


def _layers(data: JSON) -> Iterator[str]:
    for layer in worst_first(layers(data))[:_WORST_LAYERS]:
        yield f"{layer.name:<24} {layer.relative_loss:.2e} at {layer.bits} bits"


def _bits(data: JSON) -> Iterator[str]:
    listed = chosen_bits(data.get("report") or {})
    for layer in listed:
        yield f"{layer.name:<24} {layer.description}"
    if (tried := tries(data.get("report") or {})) is not None:
        yield f"tried: {tried}"


def _predictions(data: JSON) -> Iterator[str]:
    sampled: JSON = data.get("predictions") or {}
    for image in sampled.get("images") or []:
        before, after = (_predicted(image[key]) for key in ("fp32", "quantized"))
        truth = f" (labeled {class_name(image['truth'])})" if image.get("truth") else ""
        yield f"{image['file']}{truth}: {before} -> {after}"


def _predicted(prediction: Any) -> str:
    """Return a classification, or the number of boxes and the first of them, as text."""
    if isinstance(prediction, Mapping):
        return prediction_text(prediction)
    shown = ", ".join(map(prediction_text, prediction[:_SHOWN_BOXES]))
    return count_text(prediction) + (f" ({shown})" if shown else "")
