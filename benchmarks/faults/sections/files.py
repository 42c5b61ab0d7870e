"""Hostile checkpoints: each is read in a process under an audit hook."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.faults.section import Row
from benchmarks.hostile.corpus import corpus
from benchmarks.hostile.files import MAX_BYTES, read_all, summary
from benchmarks.markdown import table

TITLE = "Hostile checkpoints"
MAX_SECONDS = 10


def measure(_: argparse.Namespace) -> list[Row]:
    """Read every hostile checkpoint; return a row for each kind."""
    with tempfile.TemporaryDirectory(prefix="edged-") as folder:
        canary = Path(folder) / "canary"
        rows = summary(read_all(corpus(str(canary)), Path(folder)))
        for row in rows:
            if row["seconds"] > MAX_SECONDS:
                row["faults"].append(f"{row['kind']}: one took {row['seconds']} s")
        if canary.exists():
            rows[0]["faults"].append("a file was made by the code in one of them")
    return rows


def page(rows: list[Row]) -> str:
    """Return text and table."""
    total = {key: sum(row[key] for row in rows) for key in ("files", "refused", "ran_code")}
    faults = [fault for row in rows for fault in row["faults"]]
    harmless = total["files"] - total["refused"] - len(faults)
    lines = [
        (
            row["kind"],
            row["files"],
            row["refused"],
            row["ran_code"],
            len(row["faults"]),
            row["mebibytes"],
            row["seconds"],
        )
        for row in rows
    ]
    worst = (max(row["mebibytes"] for row in rows), max(row["seconds"] for row in rows))
    lines.append(("**all**", total["files"], total["refused"], total["ran_code"], len(faults), *worst))
    header = ("kind of file", "files", "refused", "ran code", "other faults", "MiB at most", "seconds at most")
    text = (
        f"{total['files']} files made by `benchmarks/hostile/corpus.py`, each read as a drop is read, in a process"
        " whose interpreter reports every program, socket, written file, import and lookup of a name. MiB are those"
        f" beyond the memory of the process before; the limits are {MAX_BYTES >> 20} MiB and {MAX_SECONDS} s."
        f" {total['refused']} were refused with one line, {harmless} were read as what they say: their damage hit a"
        " weight or nothing at all, and no checksum covers it."
    )
    return f"{text}\n\n{table(header, lines)}"
