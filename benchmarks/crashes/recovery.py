"""A start that finds the live generation damaged and puts another one in service, killed on its way."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.crashes.points import Point, distinct, restart_points
from benchmarks.crashes.scenario import FIRST, GOOD, SECOND, THIRD, Bases, Scenario
from tests.support.bits import flip_bit

# Three generations, of which the newest is damaged when the daemon starts: the second one has to serve.
RECOVERY = Scenario(
    "recovery", (FIRST, SECOND, THIRD), lambda *_: None, {FIRST: GOOD, SECOND: GOOD, THIRD: ("ROLLED_BACK",)}
)


def damaged_base(bases: Bases, folder: Path) -> Path:
    """Return a new state folder whose live generation, the third, has a flipped bit in its weights."""
    damaged = folder / "damaged"
    shutil.copytree(bases.make(RECOVERY.files), damaged, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    flip_bit(damaged / "state" / "models" / "digits" / "gen" / "3" / "weights.safetensors")
    return damaged


def recovery_points(bases: Bases, folder: Path, damaged: Path) -> list[Point]:
    """Return the points of a start on a damaged folder before which the disk differs."""
    return distinct(restart_points(RECOVERY, bases, folder, damaged))
