"""A comparison as text and as CSV, in the columns of Table 1 of arXiv 2509.05576. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from service.comparison.job import FULL_PRECISION
from service.reporting.facts import NAMES
from service.units import format_bytes, format_seconds

_COLUMNS = (
    *("method", "bits", "activation_bits", "iterations"),
    *("seconds", "passes", "cpu_seconds", "cpu_passes", "forward_seconds", "added_bytes"),
)
_SCORES = ("top1", "top5", "map50", "map50_95")


def metric_of(result: Mapping[str, Any]) -> str:
    """Return the score that counts: "top1" of a classifier, "map50_95" of a detector."""
    return "top1" if "top1" in result["rows"][0]["score"] else "map50_95"


def as_text(result: Mapping[str, Any]) -> str:
    """Return the table for people, and below it why methods failed."""
    metric, rows = metric_of(result), result["rows"]
    full = rows[0]["score"][metric]
    header = ("method", "bits", NAMES[metric], "drop", "time", "passes", "CPU passes", "memory added", "steps")
    cells: list[tuple[str, ...]] = [header]
    for row in rows:
        if "error" not in row:
            cells.append(_cells(row, metric, full))
    lines = _aligned(cells)
    machine = result["machine"]
    lines.append("")
    lines.append(
        f"{rows[0]['score']['images']} images; {result['identity']['calibration_images']} calibrate;"
        f" a forward pass over them takes {format_seconds(rows[0]['forward_seconds'])}"
    )
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    lines.append(f"{where}, {machine['threads']} threads, torch {machine['torch']}")
    lines += [f"{row['method']} at {row['bits']} bits failed: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines)


def as_csv(result: Mapping[str, Any]) -> str:
    """Return all rows as CSV, with a header; "error" is empty where a method did not fail."""
    text = io.StringIO()
    scores = [name for name in _SCORES if name in result["rows"][0]["score"]]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *scores, "error"])
    for row in result["rows"]:
        score = row.get("score", {})
        writer.writerow(
            [*(row.get(name) for name in _COLUMNS), *(score.get(name) for name in scores), row.get("error")]
        )
    return text.getvalue()


def _cells(row: Mapping[str, Any], metric: str, full: float) -> tuple[str, ...]:
    value = row["score"][metric]
    if row["method"] == FULL_PRECISION:
        return FULL_PRECISION, "32", f"{value:.2f}", *[""] * 6
    bits = f"{row['bits']}" if row["activation_bits"] is None else f"{row['bits']}/{row['activation_bits']}"
    return (
        row["method"],
        bits,
        f"{value:.2f}",
        f"{full - value:.2f}",
        format_seconds(row["seconds"]),
        f"{row['passes']:.1f}",
        f"{row['cpu_passes']:.1f}",
        format_bytes(row["added_bytes"]),
        str(row["iterations"] or ""),
    )


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
