"""A daemon that nobody asks sleeps."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import eventually, running
from tests.support.tasks import Task

WATCHED_S = 3.0


def wakeups(process: psutil.Process) -> int:
    """Voluntary context switches of all its threads so far."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{process.pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@pytest.mark.slow
def test_nothing_wakes_an_idle_daemon_by_the_second(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration, watch={"rescan_s": 30, "settle_s": 0.1}) as daemon:
        daemon.put_live(task.first)
        assert daemon.process is not None
        supervisor = psutil.Process(daemon.process.pid)
        eventually(lambda: len(supervisor.children(recursive=True)) == 2, "the worker has ended")
        tree = [supervisor, *supervisor.children(recursive=True)]  # a generation, and what it was forked from

        def woken() -> list[int]:
            before = [wakeups(process) for process in tree]
            time.sleep(WATCHED_S)  # that nothing happens can only be waited for
            return [wakeups(process) - count for process, count in zip(tree, before, strict=True)]

        # A rescan and a look at the generations may fall into it, some switches each; ten a second were 30 and more.
        def asleep() -> bool:
            supervisor, *others = woken()
            return supervisor <= 15 and others == [0, 0]

        eventually(asleep, "all sleep")
