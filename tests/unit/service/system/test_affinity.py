"""Cores of another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.system.affinity import confine, fastest_core

THREADS = 3
# Starts threads, and another one for each line that it reads. Writes a line whenever it has done so.
PROGRAM = f"""
import sys, threading
def start():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
for _ in range({THREADS - 1}):
    start()
print("started", flush=True)
for _ in sys.stdin:
    start()
    print("started", flush=True)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def cores_of(pid: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()]


def test_all_threads_are_confined_and_those_that_they_start(process: subprocess.Popen[str]) -> None:
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    confine(process.pid, one)
    assert cores_of(process.pid) == [one] * THREADS
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdout.readline()
    assert cores_of(process.pid) == [one] * (THREADS + 1)
    confine(process.pid, everywhere)
    assert cores_of(process.pid) == [everywhere] * (THREADS + 1)


def test_a_process_that_has_ended_is_left_alone(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    confine(process.pid, {0})


def test_cores_that_do_not_exist(process: subprocess.Popen[str]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        confine(process.pid, {1023})


def describe(root: Path, core: int, name: str, value: object) -> None:
    file = root / f"sys/devices/system/cpu/cpu{core}" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")


def test_the_fastest_core(tmp_path: Path) -> None:
    assert fastest_core([3, 2, 1], tmp_path) == 1  # nothing is known
    for core, kilohertz in ((1, 1_800_000), (2, 2_400_000), (3, 2_400_000)):
        describe(tmp_path, core, "cpufreq/cpuinfo_max_freq", kilohertz)
    assert fastest_core([3, 2, 1], tmp_path) == 2
    for core, capacity in ((1, 381), (2, 381), (3, 1024)):  # a slow core may have a high frequency
        describe(tmp_path, core, "cpu_capacity", capacity)
    assert fastest_core([3, 2, 1], tmp_path) == 3
    describe(tmp_path, 3, "cpu_capacity", "unknown")
    assert fastest_core([3, 2, 1], tmp_path) == 2
