"""Damaged state: the journal and the state folder of a daemon, damaged in many ways; what is held stays held."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from benchmarks.faults.journal_damage import DAMAGES
from benchmarks.faults.section import Row
from benchmarks.faults.state_trials import LIVE, Bench
from benchmarks.faults.trained import trained
from benchmarks.markdown import table

TITLE = "Damaged state"
# The damages of a kind, by how their names begin.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "journal cut off, emptied or zeroed": ("cut", "empty", "first page", "page of", "all zeroed"),
    "journal overwritten": ("first bytes", "noise", "a text"),
    "journal deleted or replaced": ("deleted", "a folder in its", "a dangling", "read-only", "an older"),
    "its log or its index of the log": ("log", "a folder in place of the log", "shared memory"),
    "tables, rows or values": ("table", "rows", "all rows", "column", "states", "values", "schema"),
    "the second copies": ("copies",),
    "journal, under the running daemon": ("journal",),
    "state folder, under the running daemon": ("state folder",),
}
_DEFAULT_TIMES = 1


def measure(options: argparse.Namespace) -> list[Row]:
    """Do every damage to a daemon with a pinned and a paused model and a banned file; return a row for each."""
    rows = []
    with trained() as (task, folder):
        bench = Bench(folder, task)
        for _ in range(options.times or _DEFAULT_TIMES):
            for name in (*DAMAGES, *LIVE):
                print(f"    {name} ...", flush=True)
                rows.append({"damage": name, **(bench.at_rest if name in DAMAGES else bench.while_running)(name)})
    return rows


def page(rows: list[Row]) -> str:
    """Return text and table."""
    lines = []
    for kind in _KINDS:
        of_kind = [row for row in rows if _kind_of(row["damage"]) == kind]
        names = list(dict.fromkeys(row["damage"] for row in of_kind))
        lost = sum(bool(row["faults"]) for row in of_kind)
        lines.append((kind, ", ".join(names), len(of_kind), lost or "nothing"))
    lines.append(("**all**", "", len(rows), sum(bool(row["faults"]) for row in rows) or "nothing"))
    text = (
        "A daemon with a pinned model, a paused one, a drop that each of them holds back, and a file that was rejected,"
        " is killed; its state is damaged, and it is started again. Or its state is damaged while it runs. Lost would"
        " be: the pin, the pause, the ban of the file, one of the drops, the generation in service, an answer, a page"
        " or a history without an error; a traceback in the log counts, too."
    )
    return f"{text}\n\n{table(('what', 'how', 'times', 'lost'), lines)}"


def _kind_of(damage: str) -> str:
    kinds = {beginning: kind for kind, beginnings in _KINDS.items() for beginning in beginnings}
    return kinds[max((beginning for beginning in kinds if damage.startswith(beginning)), key=len)]
