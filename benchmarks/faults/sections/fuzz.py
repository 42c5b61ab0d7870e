"""A fuzzer on everything that edged reads: bad input ends in the error that is promised, and in nothing else."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.faults.section import Row
from benchmarks.fuzz.artifact import write_small_artifact
from benchmarks.fuzz.drive import MAX_BYTES, MAX_SECONDS, fuzz_apart
from benchmarks.fuzz.files import COUNTS
from benchmarks.markdown import table

TITLE = "Fuzzed input"
SEED = 16


def measure(options: argparse.Namespace) -> list[Row]:
    """Fuzz each kind of file; return a row for each."""
    with tempfile.TemporaryDirectory(prefix="edged-") as folder:
        artifact = Path(folder) / "artifact"
        write_small_artifact(artifact)
        return [fuzz_apart(name, options.times or count, SEED, artifact) for name, count in COUNTS.items()]


def page(rows: list[Row]) -> str:
    """Return text and table."""
    header = ("kind of input", "inputs", "refused", "crashes", "MiB at most", "CPU seconds at most")
    lines = [
        (row["kind"], row["inputs"], row["refused"], row["crashes"], row["mebibytes"], row["seconds"]) for row in rows
    ]
    sums = tuple(sum(row[key] for row in rows) for key in ("inputs", "refused", "crashes"))
    lines.append(("**all**", *sums, max(row["mebibytes"] for row in rows), max(row["seconds"] for row in rows)))
    text = (
        f"{sums[0]} inputs, made by [hypothesis](https://hypothesis.readthedocs.io) from valid ones"
        " (`benchmarks/fuzz/`): bytes are changed, removed and repeated; values of documents become other types,"
        " numbers of 400 digits, NaN, unpaired surrogates and deep nesting; YAML gets tags, aliases and merges."
        " Digests and checksums are recomputed, so that the damage gets past them. A refusal is an error of the class"
        " that the code promises, in short printable lines; a crash is anything else, or more than"
        f" {MAX_BYTES >> 20} MiB or"
        f" {MAX_SECONDS:g} s of processor time for one input. What was not refused is damage that hit nothing, or that"
        " only leaves something out, such as a part of a report."
    )
    return f"{text}\n\n{table(header, lines)}"
