"""Power cuts: disks that hold what was synced, and not all of the rest; needs strace."""

from __future__ import annotations

import argparse
import sys

from benchmarks.crashes.power import Kept
from benchmarks.crashes.power_cuts import try_cuts
from benchmarks.crashes.scenario import Bases
from benchmarks.faults.section import Row
from benchmarks.faults.trained import trained
from benchmarks.markdown import table
from tests.support.syscall_faults import missing

TITLE = "Power cuts"
_STARTS = 4
_LEFT = {
    Kept.NOTHING: "nothing",
    Kept.NAMES: "all names, no data (files are empty or old)",
    Kept.DATA: "all data, no names (files are missing or have their old names)",
}


def measure(options: argparse.Namespace) -> list[Row]:
    """Record one update, and check each disk that a cut may leave; start the daemon on --times of them a row."""
    if (reason := missing()) is not None:
        sys.exit(f"an update cannot be recorded: {reason}")
    with trained() as (task, folder):
        found = try_cuts(Bases(folder / "bases", task), folder, options.times or _STARTS)
        return [
            {"kept": cuts.kept.name, "disks": cuts.disks, "starts": cuts.starts, "faults": cuts.broken}
            for cuts in found
        ]


def page(rows: list[Row]) -> str:
    """Return text and table."""
    text = (
        "All calls of the supervisor and its worker that change the state folder during one update are recorded, from"
        " the dropped file to the end, with their data. They are replayed up to each of them on a model of a disk that"
        " forgets what was not synced: POSIX promises data once its file was synced, and a name once its folder was."
        " Replayed to the end with everything, the folder must be the real one, byte for byte. On each disk `current`"
        " must lead to a generation that matches its digests, the journal must be whole and agree with it, and the"
        " dropped file must be in the drop folder or claimed, or its generation whole. On some, evenly spread, the"
        " daemon was started, and had to finish the update as after a kill. No real disk lost power."
    )
    lines = [(_LEFT[Kept[row["kept"]]], row["disks"], row["starts"], len(row["faults"])) for row in rows]
    header = ("left of what was not synced", "disks", "with a start of the daemon", "anything lost or damaged")
    return f"{text}\n\n{table(header, lines)}"
