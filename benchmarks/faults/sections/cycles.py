"""A thousand cycles: nothing is left open, running or allocated. A daemon that leaks must fail the same check."""

from __future__ import annotations

import argparse

from benchmarks.faults.section import Row
from benchmarks.markdown import table
from benchmarks.sick_device.cycles import DROP_EVERY, MEMORY_SLACK, SLACK, run

TITLE = "A thousand cycles"
CYCLES, OF_CONTROL = 1000, 40
COUNTED = ("descriptors", "segments", "threads", "processes", "bytes")


def measure(options: argparse.Namespace) -> list[Row]:
    """Return a row for edged, and one for the control."""
    cycles = CYCLES if options.times is None else options.times
    edged = run(cycles, report=lambda text: print("   ", text, flush=True))
    control = run(min(cycles, OF_CONTROL), altered="dripping")
    unseen = [name for name in COUNTED if not any(leak.startswith(name) for leak in control["leaks"])]
    return [
        {"variant": "edged", **edged, "faults": edged["leaks"]},
        {
            "variant": "leaks on purpose",
            **control,
            "faults": [f"the check does not see that {name} leak" for name in unseen],
        },
    ]


def page(rows: list[Row]) -> str:
    """Return text and table."""
    edged, control = rows
    text = (
        f"{edged['cycles']} swaps of a small network: one in {DROP_EVERY} by a new checkpoint, with all of its way from"
        " the drop folder on, the others back to the previous generation. Counted is what the supervisor and its fork"
        f" server hold at rest, after {edged['few']} swaps and after all. A leak is more than {SLACK} more of what is"
        f" counted, or {MEMORY_SLACK:.0%} more memory (the log lines that the supervisor keeps). The second daemon was"
        " altered to leak one of each, and 1 MiB, with each swap (`benchmarks/serving/altered`): counted after"
        f" {control['few']} and after {control['cycles']} swaps, the same check finds all of these leaks."
    )
    header = ("daemon", "swaps", "descriptors", "segments", "threads", "processes", "MiB", "leaks found")
    lines = [
        (
            row["variant"],
            row["cycles"],
            *(f"{row['early'][name]} -> {row['late'][name]}" for name in COUNTED[:-1]),
            f"{row['early']['bytes'] / 2**20:.1f} -> {row['late']['bytes'] / 2**20:.1f}",
            len(row["leaks"]),
        )
        for row in rows
    ]
    return f"{text}\n\n{table(header, lines)}"
