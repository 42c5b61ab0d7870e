"""Processes that stop or exceed their limits, and a clock that jumps: the daemon serves on and loses no drop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sick_device.clock import DAY_S, STOPS, SetClock, jumped, stopped
from tests.support.tasks import Task

_HANGS = ("generation stopped", "fork server stopped")  # noticed after minutes; tested with shorter limits elsewhere
_LOOK = "import sys, time\nfor line in sys.stdin: print(time.time() - time.clock_gettime(0), flush=True)"


def test_the_clock_of_a_running_process_is_set(tmp_path: Path) -> None:
    clock = SetClock(tmp_path / "clock")
    process = subprocess.Popen(
        [sys.executable, "-c", _LOOK],
        env=os.environ | clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = []
    with process:
        for ahead_s in (0, 10 * DAY_S, -3650 * DAY_S):
            clock.set(ahead_s)
            process.stdin.write("\n")
            process.stdin.flush()
            seen.append(round(float(process.stdout.readline()) / DAY_S))
        process.stdin.close()
    assert seen == [0, 10, -3650]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jumps_of_the_clock_lose_nothing(task: Task, tmp_path: Path) -> None:
    faults = dict(jumped(tmp_path / "daemon", task))
    assert len(faults) == 12
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [kind for kind in STOPS if kind not in _HANGS])
def test_a_process_that_stops_loses_nothing(kind: str, task: Task, tmp_path: Path) -> None:
    assert stopped(kind, tmp_path / "daemon", task)["faults"] == []
