"""A comparison as text and as CSV, in the columns of Table 1 of arXiv 2509.05576. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from service.comparison.differences import against_reference, error_of, metric_of
from service.comparison.job import FULL_PRECISION, REFERENCE
from service.reporting.facts import NAMES
from service.units import format_bytes, format_seconds

_COLUMNS = (
    *("method", "bits", "activation_bits", "iterations"),
    *("seconds", "passes", "cpu_seconds", "cpu_passes", "forward_seconds", "added_bytes"),
)
_COSTS = ("time", "passes", "CPU passes", "memory added", "steps")
_SCORES = ("top1", "top5", "map50", "map50_95")


def as_text(result: Mapping[str, Any]) -> str:
    """Return the table for people, and below it how it was measured and why methods failed."""
    metric, rows = metric_of(result), result["rows"]
    full = rows[0]["score"][metric]
    named = any(against_reference(row, result) is not None for row in rows)
    columns = ("method", "bits", NAMES[metric], "drop", *([f"to {REFERENCE}"] if named else []), *_COSTS)
    cells: list[tuple[str, ...]] = [columns]
    for row in rows:
        if "error" in row:
            cells.append((row["method"], str(row["bits"]), "failed", *[""] * (len(columns) - 3)))
        else:
            cells.append(_cells(row, result, full, named))
    lines = _aligned(cells)
    machine = result["machine"]
    lines.append("")
    if rows[0]["score"].get("sample") is not None:
        paired = f"; those of differences to {REFERENCE} are paired: the same images" if named else ""
        lines.append(f"± is the standard error over the images{paired}")
    lines.append(
        f"{rows[0]['score']['images']} images; {result['identity']['calibration_images']} calibrate;"
        f" a forward pass over them takes {format_seconds(rows[0]['forward_seconds'])}"
    )
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    lines.append(f"{where}, {machine['threads']} threads, torch {machine['torch']}")
    versions = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    if versions:
        lines.append("tools of others: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    lines += [f"{row['method']} at {row['bits']} bits failed: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines)


def as_csv(result: Mapping[str, Any]) -> str:
    """Return all rows as CSV, with a header; "error" is empty where a method did not fail."""
    text = io.StringIO()
    scores = [name for name in _SCORES if name in result["rows"][0]["score"]]
    writer = csv.writer(text, lineterminator="\n")
    metric = metric_of(result)
    writer.writerow([*_COLUMNS, *scores, f"{metric}_error", f"to_{REFERENCE}", f"to_{REFERENCE}_error", "error"])
    for row in result["rows"]:
        score = row.get("score", {})
        difference = against_reference(row, result) or (None, None)
        costs, values = (row.get(name) for name in _COLUMNS), (score.get(name) for name in scores)
        writer.writerow([*costs, *values, error_of(row), *difference, row.get("error")])
    return text.getvalue()


def _cells(row: Mapping[str, Any], result: Mapping[str, Any], full: float, named: bool) -> tuple[str, ...]:
    value = row["score"][metric_of(result)]
    score = _with_error(f"{value:.2f}", error_of(row))
    if row["method"] == FULL_PRECISION:
        return FULL_PRECISION, "32", score, *[""] * (1 + named + len(_COSTS))
    bits = f"{row['bits']}" if row["activation_bits"] is None else f"{row['bits']}/{row['activation_bits']}"
    difference = against_reference(row, result)
    against = "" if difference is None else _with_error(f"{difference[0]:+.2f}", difference[1])
    return (
        row["method"],
        bits,
        score,
        f"{full - value:.2f}",
        *([against] if named else []),
        format_seconds(row["seconds"]),
        f"{row['passes']:.1f}",
        f"{row['cpu_passes']:.1f}",
        format_bytes(row["added_bytes"]),
        str(row["iterations"] or ""),
    )


def _with_error(value: str, error: float | None) -> str:
    return value if error is None else f"{value} ± {error:.2f}"


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines of aligned columns, the first one to the left and the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
