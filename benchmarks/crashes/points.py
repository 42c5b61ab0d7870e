"""Kills and errors at each operation that changes the disk, one at a time, while the daemon does something."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crashes.invariants import (
    PATIENCE_S,
    broken_on_disk,
    broken_while_running,
    come_to_rest,
    is_at_rest,
    states_of,
)
from benchmarks.crashes.scenario import Bases, Scenario, started
from service.system.disk_thread import NAME as DISK
from tests.support.daemon import Daemon, eventually, processes, workers
from tests.support.syscall_faults import Fault, attached, command_prefix, operations, threads_of

# Who is hit: the thread that does the disk work, those that copy dropped files, or the worker.
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS")
THREADS = ("disk", "intake", "worker")
_SYNCS = ("fsync", "fdatasync")
_JOURNALING = ("fdatasync", "pwrite64")
_IDLE = 4
_numbers = itertools.count()


@dataclass(frozen=True)
class Point:
    """A place where a fault is injected.

    Attributes:
        who: One of THREADS, or "start" for the whole daemon from its start on.
        call: Name of the call.
        number: Which of these calls.
        arguments: Arguments of the call in the run without faults.
    """

    who: str
    call: str
    number: int
    arguments: str

    def fault(self, effect: str) -> Fault:
        """Return an error or a kill at this point."""
        return Fault(self.call, effect, str(self.number))


@dataclass(frozen=True)
class Trial:
    """What came of one point.

    Attributes:
        point: Point of the fault.
        reached: Whether the fault was injected.
        broken: What did not hold afterwards.
        states: States of the newest update, one after another.
    """

    point: Point
    reached: bool
    broken: tuple[str, ...]
    states: tuple[str, ...]


def points_of(scenario: Scenario, bases: Bases, folder: Path, who: str) -> list[Point]:
    """Return all points of a scenario in the order in which they are reached: one run without faults."""
    with bases.copy(scenario.files, folder / "clean") as daemon, started(daemon):
        log = folder / "clean-log"
        _act_traced(daemon, scenario, bases, who, log, [])
        come_to_rest(daemon, scenario)
        for file in scenario.dropped:
            bases.learn(daemon, file)
    made = [each for each in operations(log) if str(daemon.state) in each.arguments]
    if who == "intake":  # of the threads, the one that has claimed the file
        claims = {each.thread for each in made if each.call in ("link", "linkat")}
        made = [each for each in made if each.thread in claims]
    return [
        Point(who, each.call, each.number, each.arguments) for each in made if "journal.db-shm" not in each.arguments
    ]


def distinct(points: Sequence[Point]) -> list[Point]:
    """Return the points before which the disk differs.

    A sync changes nothing that a process which starts later could see, nor does a part of a transaction.
    """
    kept = []
    for before, point in zip([None, *points], points, strict=False):
        same = before is not None and before.call in _SYNCS and point.call in _SYNCS
        part = before is not None and before.call == point.call == "pwrite64"
        if not same and not part:
            kept.append(point)
    return kept


def pairs(points: Sequence[Point]) -> list[tuple[Point, tuple[Fault, Fault] | tuple[Fault]]]:
    """Return two faults for each point: an error, and a second fault while the first one is handled.

    Half of the points get the same error again at the next call of this name, the others a kill at the next call of
    the journal.
    """
    found: list[tuple[Point, tuple[Fault, Fault] | tuple[Fault]]] = []
    last = dict.fromkeys(_JOURNALING, 0)
    kept = set(distinct(points))
    effects = itertools.cycle(ERRORS)
    for point in points:
        last[point.call] = point.number
        if point not in kept:
            continue
        effect = next(effects)
        if len(found) % 2:
            after = next(call for call in _JOURNALING if call != point.call)
            found.append((point, (point.fault(effect), Fault(after, "SIGKILL", str(last[after] + 1)))))
        else:
            twice = f"{point.number}..{point.number + 1}+1"
            found.append((point, (Fault(point.call, effect, twice),)))
    return found


def killed_at(scenario: Scenario, bases: Bases, folder: Path, point: Point) -> Path:
    """Return a state folder as a kill at a point leaves it."""
    number = next(_numbers)
    killed = folder / f"killed-{number}"
    with bases.copy(scenario.files, folder / f"trial-{number}") as daemon:
        daemon.start()
        log = folder / f"strace-{number}"
        _act_traced(daemon, scenario, bases, point.who, log, [point.fault("SIGKILL")])
        eventually(lambda: not processes(daemon), "the children of a killed daemon end")
        shutil.copytree(daemon.folder, killed, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    return killed


def restart_points(scenario: Scenario, bases: Bases, folder: Path, killed: Path) -> list[Point]:
    """Return the points of the start that follows a kill, up to the next worker or to rest."""
    log = folder / f"strace-{next(_numbers)}"
    with bases.copy(killed, folder / "restarted") as daemon:
        daemon.prefix = command_prefix(log)
        with started(daemon):
            come_to_rest(daemon, scenario)
            made = operations(log)
    found: dict[tuple[str, int], Point] = {}  # the kill hits the first thread that comes to the n-th call
    for each in made:
        if f"{daemon.state / 'staging'}/" in each.arguments and each.call in ("write", "fsync", "mkdir"):
            break
        if str(daemon.state) in each.arguments and "journal.db-shm" not in each.arguments and each.error is None:
            found.setdefault((each.call, each.number), Point("start", each.call, each.number, each.arguments))
    return list(found.values())


def try_point(
    scenario: Scenario,
    bases: Bases,
    folder: Path,
    point: Point,
    faults: Sequence[Fault],
    killed: Path | None = None,
) -> Trial:
    """Begin a scenario, inject faults, restart the daemon if it was killed, and check what must hold.

    Args:
        scenario: What the daemon does.
        bases: State folders to begin with.
        folder: Folder to work in.
        point: Where the first fault is.
        faults: All faults.
        killed: State folder that a kill has left, if the point is in the start that follows; it is copied.
    """
    number = next(_numbers)
    log = folder / f"strace-{number}"
    broken: list[str] = []
    states: tuple[str, ...] = ()
    with bases.copy(killed or scenario.files, folder / f"trial-{number}") as daemon:
        try:
            if killed is not None:
                daemon.prefix = command_prefix(log, *faults)
                daemon.spawn()
                _await_end(daemon, scenario)
                if not daemon.has_ended:
                    daemon.kill()  # it has come to rest before the point
                daemon.prefix = ()
            else:
                daemon.start()
                _act_traced(daemon, scenario, bases, point.who, log, faults)
            if daemon.has_ended:
                eventually(lambda: not processes(daemon), "the children of a killed daemon end")
                daemon.start()
            come_to_rest(daemon, scenario)
            broken += broken_while_running(daemon, scenario, bases)
            states = states_of(daemon, daemon.updates()[0]["id"])
            if (code := daemon.stop()) != 0:
                broken.append(f"the daemon ended with exit code {code}")
            broken += broken_on_disk(daemon)
        except AssertionError as error:
            broken.append(f"{error}\n{daemon.log.read_text(errors='replace')[-3000:]}")
    return Trial(point, any(each.injected for each in operations(log)), tuple(broken), states)


def _act_traced(daemon: Daemon, scenario: Scenario, bases: Bases, who: str, log: Path, faults: Sequence[Fault]) -> None:
    """Let a scenario happen while some threads are traced, until the daemon is dead or has come to rest."""
    if who == "worker":
        scenario.act(daemon, bases.task)
        (worker,) = eventually(lambda: workers(daemon), "a worker")
        threads = [worker.pid]
    else:
        threads = _threads(daemon, who)
    with attached(threads, log, *faults, follow=who == "worker"):
        if who != "worker":
            scenario.act(daemon, bases.task)
        _await_end(daemon, scenario)


def _threads(daemon: Daemon, who: str) -> list[int]:
    """Return the threads of the supervisor that do the disk work, or all that may copy a dropped file."""
    if who == "disk":
        return [thread for thread, name in threads_of(daemon.pid).items() if name == DISK]
    return eventually(lambda: _idle_threads(daemon), "idle threads")


def _idle_threads(daemon: Daemon) -> list[int] | None:
    """Return the threads that any work is handed to, once there are so many that no more are started."""
    with ThreadPoolExecutor(_IDLE) as pool:
        list(pool.map(daemon.get, ["/metrics"] * _IDLE))
    _, *others = threads_of(daemon.pid).items()
    found = [thread for thread, name in others if name != DISK]
    return found if len(found) >= _IDLE else None


def _await_end(daemon: Daemon, scenario: Scenario) -> None:
    eventually(lambda: daemon.has_ended or is_at_rest(daemon, scenario), "death or rest", PATIENCE_S)
