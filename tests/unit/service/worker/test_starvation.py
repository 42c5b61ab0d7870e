"""A worker that gets hardly any time."""

from __future__ import annotations

import os
import re
from pathlib import Path

from service.worker.starvation import WINDOW_S, Starvation

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A machine with one process, whose state and processor time the test sets."""

    def __init__(self, root: Path) -> None:
        self.file = root / "proc/7/stat"
        self.file.parent.mkdir(parents=True)
        self.now = 50.0
        self.starvation = Starvation(7, self.now, root)

    def after(self, seconds: float, state: str, ran_s: float) -> str | None:
        """Return what is found after this time in a state, with so much processor time since the start."""
        self.file.write_text(f"7 (python) 3 (x)) {state} {'1 ' * 10}{ran_s * TICKS:.0f} 0 0 0\n")
        self.now += seconds
        return self.starvation.check(self.now)


def test_a_worker_that_waits_nearly_all_the_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.after(WINDOW_S, "R", 50.0) is None
    assert machine.after(WINDOW_S - 1, "R", 51.0) is None  # too early to tell
    assert machine.after(1, "R", 51.5) == "ran for 1.5 of 60 s, and waited for a core otherwise"
    assert machine.after(WINDOW_S, "R", 51.5) is None  # once


def test_a_worker_that_waits_for_the_disk_is_not_starved(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.after(WINDOW_S - 5, "D", 0.5) is None
    assert machine.after(5, "R", 0.5) is None
    assert machine.after(WINDOW_S, "S", 0.5) is None


def test_a_worker_that_has_ended(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.starvation.check(machine.now + WINDOW_S) is None


def test_the_file_of_a_real_process() -> None:
    """This process runs now, so it counts as ready for a year, and has not run for a twentieth of that."""
    found = Starvation(os.getpid(), 0.0).check(365 * 86400.0)
    assert found is not None
    assert re.fullmatch(r"ran for \d+\.\d of 31536000 s, and waited for a core otherwise", found)
