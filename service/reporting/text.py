"""A report in words, for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.reporting.facts import facts
from service.reporting.pictures import count_of, name_of, said
from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

_WORST_LAYERS = 5
_BAR = 40  # characters


def summary(data: JSON, page: str | None) -> str:
    """Some screens of text.

    Args:
        data: See `service.reporting.data.gather`.
        page: Where report.html lies, if anywhere.
    """
    update: JSON = data["update"]
    lines = [f"update {update['id']} of {update['model']}: {update['state']}", f"  {update['file_name']}"]
    if update.get("code"):
        lines.append(f"  {update['code']}: {update['reason']}")
    known = facts(data)
    width = max((len(name) for name, _ in known), default=0)
    lines += [f"  {name:<{width}}  {value}" for name, value in known]
    for title, rows in (
        ("stages", _stages(data)),
        ("memory of the worker", _memory(data)),
        ("largest relative loss", _layers(data)),
        ("sample predictions, full precision -> quantized", _predictions(data)),
    ):
        listed = list(rows)
        if listed:
            lines += ["", title, *(f"  {row}".rstrip() for row in listed)]
    return "\n".join([*lines, *(["", f"page: {page}"] if page else [])])


def _stages(data: JSON) -> Iterator[str]:
    """A bar from the beginning to the end of each."""
    timeline = data["timeline"]
    whole = max((span["start_s"] + span["seconds"] for span in timeline), default=0.0) or 1.0
    for span in timeline:
        left = round(_BAR * span["start_s"] / whole)
        right = max(left + 1, round(_BAR * (span["start_s"] + span["seconds"]) / whole))
        bar = (" " * min(left, _BAR - 1) + "#" * (min(right, _BAR) - min(left, _BAR - 1))).ljust(_BAR)
        yield f"{span['stage']:<10} {bar} {format_seconds(span['seconds'])}"


def _memory(data: JSON) -> Iterator[str]:
    """The peak of each tenth of its life."""
    points = (data.get("course") or {}).get("memory") or []
    if not points:
        return
    end = max(points[-1][0], 0.1)
    most = max(used for _, used in points) or 1
    for tenth in range(10):
        within = [used for at, used in points if end * tenth / 10 < at <= end * (tenth + 1) / 10]
        if within:
            bar = "#" * max(1, round(_BAR * max(within) / most))
            yield f"{format_seconds(end * (tenth + 1) / 10):<10} {bar:<{_BAR}} {format_bytes(max(within))}"


def _layers(data: JSON) -> Iterator[str]:
    layers = (data.get("report") or {}).get("layers") or []
    for layer in sorted(layers, key=lambda layer: -float(layer["relative_loss"]))[:_WORST_LAYERS]:
        yield f"{layer['name']:<24} {layer['relative_loss']:.2e} at {layer['bits']} bits"


def _predictions(data: JSON) -> Iterator[str]:
    sampled: JSON = data.get("predictions") or {}
    for image in sampled.get("images") or []:
        before, after = (_words(image[key]) for key in ("fp32", "quantized"))
        truth = f" (labelled {name_of(image['truth'])})" if image.get("truth") else ""
        yield f"{image['file']}{truth}: {before} -> {after}"


def _words(found: Any) -> str:
    if isinstance(found, Mapping):
        return said(found)
    return count_of(found) + (f" ({', '.join(map(said, found[:3]))})" if found else "")
