"""An update that meets a full or failing disk waits with the reason, and goes live once the disk is in order."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks.faults.sections.disk import KINDS, row, trials
from benchmarks.sick_device import disk as sick
from benchmarks.sick_device.daemon import Drops, serving
from benchmarks.sick_device.disk import Trial
from tests.support import small_disk, syscall_faults
from tests.support.small_disk import SmallDisk
from tests.support.tasks import Task

pytestmark = pytest.mark.skipif(small_disk.missing() is not None, reason=str(small_disk.missing()))

Fault = Callable[[Callable[[], None]], AbstractContextManager[object]]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk.small_disk(tmp_path_factory.mktemp("disk") / "small", sick.SIZE, sick.INODES) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def trial(disk: SmallDisk, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("drops")
    drops = Drops(task, folder)
    with serving(disk.path / "edged", folder / "log", task, drops) as (daemon, traffic):
        yield Trial(daemon, traffic, drops)


def test_a_file_that_meets_a_full_disk_waits_in_the_drop_folder(trial: Trial, disk: SmallDisk) -> None:
    outcome = trial.run("no page left", lambda go: sick.full(disk, go, 0))
    assert outcome.faults == []
    assert (outcome.waited or "").startswith("in the drop folder: it cannot be taken now: cannot write the journal")


def test_an_update_whose_artifact_meets_the_end_of_the_inodes_is_deferred(trial: Trial, disk: SmallDisk) -> None:
    outcome = trial.run("four inodes left", lambda go: sick.crowded(disk, go, 4))
    assert outcome.faults == []
    assert re.fullmatch(r"DEFERRED: cannot (read or )?write .*: No space left on device", outcome.waited or "")


def test_a_disk_that_is_full_in_the_middle_of_an_update_keeps_no_update_from_going_on(
    trial: Trial, disk: SmallDisk
) -> None:
    """Not even its deferral can be journaled then."""
    state = trial.daemon.state
    outcome = trial.run("full once staged", lambda go: sick.filled_at(state, disk, go, "staged", 0))
    assert outcome.faults == []
    assert "cannot write the journal" in (outcome.waited or "")  # DEFERRED, or PUBLISHED if it has come that far


def test_what_is_left_is_seen(trial: Trial) -> None:
    """The control: the check of the state folder finds what should not be there."""
    (trial.daemon.state / "staging/left").mkdir()
    (trial.daemon.state / "staging/left/file").touch()
    source = trial.daemon.updates()[0]["file_name"]
    assert list(sick.broken(trial.daemon, source)) == ["left behind: staging/left"]
    subprocess.run(["rm", "-r", trial.daemon.state / "staging/left"], check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_some_moments_of_each_fault(kind: str, task: Task, tmp_path: Path) -> None:
    if "E" in kind and (why := syscall_faults.missing()) is not None:
        pytest.skip(why)
    counted = row(kind, trials(kind, tmp_path, task, most=6))
    assert counted["faults"] == []
    assert counted["waited"] >= 3
