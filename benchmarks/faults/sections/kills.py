"""Random kills of every process under load."""

from __future__ import annotations

import argparse

from benchmarks.crashes.kills import VICTIMS, kill_at_random
from benchmarks.crashes.scenario import Bases
from benchmarks.faults.section import Row
from benchmarks.faults.trained import trained
from benchmarks.markdown import table

TITLE = "Kills of any process at any moment"
_KILLS = 2000
_SEED = 1


def measure(options: argparse.Namespace) -> list[Row]:
    """Kill --times processes; return one row."""
    with trained() as (task, folder):
        found = kill_at_random(Bases(folder / "bases", task), folder, options.times or _KILLS, _SEED)
    return [
        {
            "kills": dict(found.kills),
            "files": found.files,
            "statuses": dict(found.statuses),
            "longest_s": round(found.longest_s, 1),
            "faults": list(found.broken),
        }
    ]


def page(rows: list[Row]) -> str:
    """Return text and table."""
    (row,) = rows
    statuses, kills = row["statuses"], row["kills"]
    answered = statuses.get("200", 0)
    unavailable = sum(count for status, count in statuses.items() if status not in ("200", "no connection"))
    text = (
        f"{sum(kills.values())} times, a process of the daemon that was chosen at random was killed by SIGKILL, with a"
        " random pause of at most 0.4 s before each kill. Meanwhile a client sent one image over and over, and"
        f" {row['files']} files were dropped, one after another. A supervisor that was killed was started again at"
        " once. After each file the daemon had to serve with the right answers, and everything that must hold after a"
        " kill at an operation on the disk was checked. Of the client's requests,"
        f" {answered} were answered, all with the right numbers; {unavailable} got 503 or another status that says that"
        f" they should be tried again, and {statuses.get('no connection', 0)} met no supervisor. The longest time"
        f" between two answers was {row['longest_s']} s, in which several processes were killed."
    )
    lines = [(victim, kills.get(victim, 0)) for victim in VICTIMS]
    lines += [
        ("files committed", row["files"]),
        ("anything lost, done twice, wrong or left behind", len(row["faults"])),
    ]
    return f"{text}\n\n{table(('killed', 'times'), lines)}"
