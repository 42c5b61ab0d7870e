"""A worker that gets hardly any time."""

from __future__ import annotations

import os
import re
from pathlib import Path

from service.worker.starvation import CORE, DISK, GLANCE_S, MEMORY, WINDOW_S, Starvation

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A machine with one process, whose state and processor time the test sets."""

    def __init__(self, root: Path) -> None:
        self.file = root / "proc/7/stat"
        self.file.parent.mkdir(parents=True)
        self.now = 50.0
        self.starvation = Starvation(7, self.now, root)

    def after(self, seconds: float, state: str, ran_s: float, major_faults: int = 0) -> str | None:
        """Return what is found after this time in a state, with so much processor time since the start."""
        fields = f"{'1 ' * 8}{major_faults} 1 {ran_s * TICKS:.0f} 0 0 0"
        self.file.write_text(f"7 (python) 3 (x)) {state} {fields}\n")
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


def test_what_a_worker_waits_for_now(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    waits = []
    for state, ran_s, faults in (
        ("R", 0.1, 0),  # of five seconds
        ("R", 4.0, 0),
        ("D", 4.1, 10),
        ("D", 4.2, 500),
        ("S", 4.2, 500),
        ("R", 4.3, 500),
    ):
        for part in (0.5, 1.0):  # as it is looked at several times
            machine.after(GLANCE_S / 2, state, ran_s * part, faults)
        waits.append(machine.starvation.waits_for)
    assert waits == [CORE, None, DISK, MEMORY, None, CORE]
    machine.file.unlink()
    machine.starvation.check(machine.now + 1)
    assert machine.starvation.waits_for is None


def test_a_worker_that_has_ended(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.starvation.check(machine.now + WINDOW_S) is None


def test_the_file_of_a_real_process() -> None:
    """This process runs now, so it counts as ready for a year, and has not run for a twentieth of that."""
    found = Starvation(os.getpid(), 0.0).check(365 * 86400.0)
    assert found is not None
    assert re.fullmatch(r"ran for \d+\.\d of 31536000 s, and waited for a core otherwise", found)
