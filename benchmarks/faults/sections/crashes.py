"""Kills and errors at each operation that changes the disk, alone and in pairs; needs strace."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.crashes.points import (
    ERRORS,
    Point,
    Trial,
    distinct,
    killed_at,
    pairs,
    points_of,
    restart_points,
    try_point,
)
from benchmarks.crashes.recovery import RECOVERY, damaged_base, recovery_points
from benchmarks.crashes.scenario import SCENARIOS, Bases
from benchmarks.faults.section import Row, some
from benchmarks.faults.trained import trained
from benchmarks.markdown import table
from tests.support.syscall_faults import missing

TITLE = "Kills and errors at each operation on the disk"
_UPDATE = SCENARIOS["update"]
# What else the daemon does, and which of its threads or processes is hit.
_KILLS = (
    *(("rollback", "disk"), ("update", "intake"), ("update", "worker"), ("rejection", "disk"), ("retry", "disk")),
    ("pin", "disk"),
)
_WHOM = {"disk": "supervisor", "intake": "supervisor, thread that copies the file", "worker": "worker"}
_RESTARTS = 3  # states of the disk that a kill in an update leaves, and in which the next start is killed, too


def measure(options: argparse.Namespace) -> list[Row]:
    """Try all points, or --times of each row, evenly spread; return a row for each kind."""
    if (reason := missing()) is not None:
        sys.exit(f"faults cannot be injected: {reason}")
    with trained() as (task, folder):
        return list(_rows(Bases(folder / "bases", task), folder, options.times))


def _rows(bases: Bases, folder: Path, times: int | None) -> Iterator[Row]:
    in_update = points_of(_UPDATE, bases, folder, "disk")
    yield _kills(bases, folder, "update", "disk", times, in_update)
    both = pairs(in_update)
    trials = (try_point(_UPDATE, bases, folder, point, faults) for point, faults in some(both, times))
    yield _row("error, then an error or a kill in its handling", "update", trials, len(both))
    yield _restarts(bases, folder, in_update, times)
    yield _recovery(bases, folder, times)
    errors = list(zip(distinct(in_update), itertools.cycle(ERRORS), strict=False))
    trials = (try_point(_UPDATE, bases, folder, point, [point.fault(error)]) for point, error in some(errors, times))
    yield _row("error", "update", trials, len(errors))
    for name, who in _KILLS:
        yield _kills(bases, folder, name, who, times, points_of(SCENARIOS[name], bases, folder, who))


def _kills(bases: Bases, folder: Path, name: str, who: str, times: int | None, points: Sequence[Point]) -> Row:
    places, scenario = distinct(points), SCENARIOS[name]
    kills = (try_point(scenario, bases, folder, point, [point.fault("SIGKILL")]) for point in some(places, times))
    return _row(f"kill in the {_WHOM[who]}", name, kills, len(places))


def _restarts(bases: Bases, folder: Path, in_update: Sequence[Point], times: int | None) -> Row:
    states = some(distinct(in_update), _RESTARTS)
    trials, known = [], 0
    for first in states:
        killed = killed_at(_UPDATE, bases, folder, first)
        points = distinct(restart_points(_UPDATE, bases, folder, killed))
        known += len(points)
        for point in some(points, times and -(-times // _RESTARTS)):
            trials.append(try_point(_UPDATE, bases, folder, point, [point.fault("SIGKILL")], killed))
    return _row("kill in the start that follows a kill", "update", trials, known)


def _recovery(bases: Bases, folder: Path, times: int | None) -> Row:
    damaged = damaged_base(bases, folder)
    points = recovery_points(bases, folder, damaged)
    kills = (
        try_point(RECOVERY, bases, folder, point, [point.fault("SIGKILL")], damaged) for point in some(points, times)
    )
    return _row("kill in a start that replaces a damaged generation", RECOVERY.name, kills, len(points))


def _row(what: str, name: str, trials: Iterable[Trial], known: int) -> Row:
    tried = list(trials)
    faults = [f"{what}, {name}, {trial.point}: {each}" for trial in tried for each in trial.broken]
    reached = sum(trial.reached for trial in tried)
    print(f"    {what}, {name}: {reached} of {known}", flush=True)
    return {"what": what, "during": name, "known": known, "tried": len(tried), "reached": reached, "faults": faults}


def page(rows: list[Row]) -> str:
    """Return text and table."""
    total = {key: sum(row[key] for row in rows) for key in ("known", "reached")}
    lines = [(row["what"], row["during"], row["known"], row["reached"], len(row["faults"])) for row in rows]
    lines.append(("**all**", "", total["known"], total["reached"], sum(len(row["faults"]) for row in rows)))
    text = (
        "The real daemon is traced by strace, which ends a process right before a call that changes the disk, or makes"
        " the call return an error (EIO, ENOSPC, EDQUOT and EROFS in turn). The places are all calls of a run without"
        f" faults, except those between which nothing changes on the disk. Of {total['known']} places"
        f" {total['reached']} were tried, evenly spread; without --times all are. After a kill the daemon is started"
        " again, after an error it is left alone. Then it must"
        " serve, with the answers of the model that the journal says is live; each dropped file must have ended as it"
        " would have without the fault, once; all generations must match their digests, and the journal must know them;"
        " and neither half-written files nor processes may be left."
    )
    header = ("fault", "during", "places", "faults injected", "anything lost, done twice or left behind")
    return f"{text}\n\n{table(header, lines)}"
