"""A kill at each operation that changes the disk, and at any other moment: nothing is lost or done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.crashes.kills import VICTIMS, kill_at_random
from benchmarks.crashes.points import Point, distinct, killed_at, pairs, points_of, restart_points, try_point
from benchmarks.crashes.recovery import RECOVERY, damaged_base, recovery_points
from benchmarks.crashes.scenario import SCENARIOS, Bases
from benchmarks.faults.section import some
from tests.support.syscall_faults import missing
from tests.support.tasks import Task

UPDATE = SCENARIOS["update"]
KILLS_OF_RECOVERY = 10
injects = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def bases(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"), task)


@pytest.fixture(scope="module")
def disk_points(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    return points_of(UPDATE, bases, tmp_path_factory.mktemp("points"), "disk")


def after(points: list[Point], is_it: Callable[[Point], bool]) -> Point:
    """Return the point right after another one."""
    return points[next(index for index, point in enumerate(points) if is_it(point)) + 1]


@injects
def test_what_was_published_right_before_a_kill_is_not_made_again(
    bases: Bases, disk_points: list[Point], tmp_path: Path
) -> None:
    point = after(disk_points, lambda each: each.call == "rename" and "/staging/" in each.arguments)
    trial = try_point(UPDATE, bases, tmp_path, point, [point.fault("SIGKILL")])
    assert (trial.reached, trial.broken) == (True, ())
    assert trial.states.count("QUANTIZED") == trial.states.count("PUBLISHED") == 1
    assert trial.states.count("CLAIMED") == 2  # it went on from there


@injects
def test_a_switch_right_before_a_kill_counts(bases: Bases, disk_points: list[Point], tmp_path: Path) -> None:
    point = after(disk_points, lambda each: each.call == "rename" and "/.current.tmp" in each.arguments)
    trial = try_point(UPDATE, bases, tmp_path, point, [point.fault("SIGKILL")])
    assert (trial.reached, trial.broken) == (True, ())


@injects
def test_a_file_that_is_journaled_and_still_in_the_drop_folder_is_taken_once(
    bases: Bases, disk_points: list[Point], tmp_path: Path
) -> None:
    point = Point("intake", "fdatasync", 1, "the journal")
    trial = try_point(UPDATE, bases, tmp_path, point, [point.fault("SIGKILL")])
    assert (trial.reached, trial.broken) == (True, ())


def test_points_before_which_the_disk_is_the_same_count_once() -> None:
    calls = ("pwrite64", "pwrite64", "fdatasync", "fsync", "rename", "fsync", "unlink", "unlink")
    points = [Point("disk", call, number, "") for number, call in enumerate(calls)]
    assert [point.number for point in distinct(points)] == [0, 2, 4, 5, 6, 7]


@injects
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("who", ["disk", "intake", "worker"])
def test_a_kill_at_any_operation_of_an_update(bases: Bases, tmp_path: Path, who: str) -> None:
    points = distinct(points_of(UPDATE, bases, tmp_path, who))
    for point in points[:: len(points) // 12 or 1]:
        trial = try_point(UPDATE, bases, tmp_path, point, [point.fault("SIGKILL")])
        assert trial.broken == (), point


@injects
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_second_fault_while_the_first_is_handled(bases: Bases, disk_points: list[Point], tmp_path: Path) -> None:
    both = pairs(disk_points)
    for point, faults in both[:: len(both) // 9 or 1]:
        assert try_point(UPDATE, bases, tmp_path, point, faults).broken == (), (point, faults)


@injects
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_in_the_start_that_follows_a_kill(bases: Bases, disk_points: list[Point], tmp_path: Path) -> None:
    switched = after(disk_points, lambda each: each.call == "rename" and "/.current.tmp" in each.arguments)
    killed = killed_at(UPDATE, bases, tmp_path, switched)
    points = distinct(restart_points(UPDATE, bases, tmp_path, killed))
    assert points
    for point in points[:: len(points) // 9 or 1]:
        trial = try_point(UPDATE, bases, tmp_path, point, [point.fault("SIGKILL")], killed)
        assert trial.broken == (), point


@pytest.fixture(scope="module")
def damaged(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged_base(bases, tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module")
def points_of_recovery(bases: Bases, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    return some(recovery_points(bases, tmp_path_factory.mktemp("recovery"), damaged), KILLS_OF_RECOVERY)


@injects
@pytest.mark.slow
@pytest.mark.parametrize("index", range(KILLS_OF_RECOVERY))
def test_a_kill_in_the_start_that_replaces_a_damaged_generation(
    bases: Bases, damaged: Path, points_of_recovery: list[Point], tmp_path: Path, index: int
) -> None:
    """The newest whole generation serves after the next start, wherever the first one was killed."""
    point = points_of_recovery[index]
    trial = try_point(RECOVERY, bases, tmp_path, point, [point.fault("SIGKILL")], damaged)
    assert trial.broken == (), point
    assert trial.reached or point.number > 1, point  # which thread makes the second call of a kind is not certain


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
def test_a_hundred_kills_of_all_processes(bases: Bases, tmp_path: Path, seed: int) -> None:
    result = kill_at_random(bases, tmp_path, 100, seed)
    assert result.broken == ()
    assert all(result.kills[victim] > 0 for victim in VICTIMS)
    assert result.statuses["200"] > 0
