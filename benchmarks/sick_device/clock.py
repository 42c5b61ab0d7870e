"""Processes that stop, and a wall clock that jumps, under a daemon that serves and takes drops."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.sick_device.daemon import Drops, Traffic, broken, serving
from tests.support.daemon import Daemon, children, eventually, tracebacks
from tests.support.tasks import Task

DAY_S = 86400
JUMPS = {"an hour ahead": 3600, "ten years ahead": 3650 * DAY_S, "an hour back": -3600, "ten years back": -3650 * DAY_S}
_WATCHDOG_S = 10.0
_STOPPED_S = 5.0  # for which the supervisor is stopped
_HUNG_S = 400.0  # a generation counts as hung after two minutes, one that does not start after three


class SetClock:
    """The wall clock of the processes that are started with `environment`.

    Args:
        file: File that steers them.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        paths = [str(Path(__file__).with_name("set_clock")), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {"EDGED_CLOCK": str(file), "PYTHONPATH": os.pathsep.join(paths)}

    def set(self, ahead_s: int) -> None:
        """Set the clock to so many seconds ahead of the real one."""
        new = self._file.with_suffix(".new")
        new.write_text(str(ahead_s))
        new.replace(self._file)


class Notifications:
    """The service manager's end of the notification socket.

    Args:
        path: Path of the socket.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(_WATCHDOG_S * 1e6))}

    def beats(self) -> int:
        """Return how often the watchdog was fed since the last call."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += self._socket.recv(65536).decode().split("\n").count("WATCHDOG=1")
        return count

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def jumped(folder: Path, task: Task) -> Iterator[tuple[str, list[str]]]:
    """Let the clock of a daemon jump when it is idle, while its worker runs, and while an update is deferred.

    Yields:
        Each jump, and what did not hold after it.
    """
    folder.mkdir(exist_ok=True)
    clock, notifications = SetClock(folder / "clock"), Notifications(folder / "notify")
    drops = Drops(task, folder)
    environment = clock.environment | notifications.environment
    with (
        contextlib.closing(notifications),
        serving(folder / "edged", folder / "log", task, drops, environment) as (daemon, traffic),
    ):
        refused = folder / "refused.pt"
        refused.write_bytes(b"no checkpoint")
        daemon.drop(refused)
        daemon.update_of("refused.pt", "REJECTED")
        for name, seconds in JUMPS.items():
            for when, go in (("idle", _idle), ("with the worker", _at_work), ("deferred", _deferred)):
                clock.set(0)
                faults = list(go(daemon, drops, partial(clock.set, seconds)))
                faults += _undisturbed(daemon, traffic, notifications)
                yield f"{name}, {when}", faults
        clock.set(0)


def _idle(daemon: Daemon, drops: Drops, jump: Callable[[], None]) -> Iterator[str]:
    jump()
    yield from _goes_live(daemon, drops)


def _at_work(daemon: Daemon, drops: Drops, jump: Callable[[], None]) -> Iterator[str]:
    yield from _goes_live(daemon, drops, lambda: _when_working(daemon, jump))


def _when_working(daemon: Daemon, jump: Callable[[], None]) -> None:
    eventually(lambda: children(daemon, "service.worker.main"), "a worker")
    jump()


def _deferred(daemon: Daemon, drops: Drops, jump: Callable[[], None]) -> Iterator[str]:
    """The worker is killed; the clock jumps while the update waits for its next attempt."""

    def kill() -> None:
        (worker,) = eventually(lambda: children(daemon, "service.worker.main"), "a worker")
        worker.kill()
        jump()

    yield from _goes_live(daemon, drops, kill)


def _goes_live(daemon: Daemon, drops: Drops, meanwhile: Callable[[], None] = lambda: None) -> Iterator[str]:
    source = drops.new()
    daemon.drop(source)
    meanwhile()
    try:
        update = daemon.update_of(source.name)
    except AssertionError as error:
        yield str(error)
        return
    yield from broken(daemon, source.name)
    yield from (f"stage {name} took {s} s" for name, s in update["stages"].items() if not 0 <= s < 600)


def _undisturbed(daemon: Daemon, traffic: Traffic, notifications: Notifications) -> Iterator[str]:
    failed, traffic.failures = traffic.failures, []
    yield from (f"request: {failure}" for failure in failed[:3])
    notifications.beats()
    try:
        eventually(notifications.beats, "a heartbeat", 10 * _WATCHDOG_S)
    except AssertionError as error:
        yield str(error)
    yield from tracebacks(daemon.log.read_text(errors="replace"))
    if not any(update["file_name"] == "refused.pt" for update in daemon.updates()):
        yield "an update is gone from the history"
    if not list((daemon.state / "rejected").iterdir()):
        yield "a rejected file is gone"


def stopped(kind: str, folder: Path, task: Task) -> dict[str, Any]:
    """Stop one process of a daemon, or exceed its limit, and return what became of it.

    Args:
        kind: One of STOPS.
        folder: Folder for the files.
        task: Checkpoints and images.
    """
    folder.mkdir(exist_ok=True)
    drops = Drops(task, folder)
    with serving(folder / "edged", folder / "log", task, drops) as (daemon, traffic):
        start = time.monotonic()
        faults = list(STOPS[kind](daemon, traffic, drops))
        seconds = round(time.monotonic() - start, 1)
        eventually(lambda: daemon.infer(next(task.test.rglob("*.png"))).status_code == 200, "an answer")
        failed = len(traffic.failures)
        faults += tracebacks(daemon.log.read_text(errors="replace"))
    return {"kind": kind, "seconds": seconds, "failed": failed, "answered": traffic.answers, "faults": faults}


def _worker_stops(daemon: Daemon, traffic: Traffic, drops: Drops) -> Iterator[str]:
    daemon.config["worker"]["deadline_s"] = 20
    daemon.reload()

    def stop() -> None:
        (worker,) = eventually(lambda: children(daemon, "service.worker.main"), "a worker")
        worker.suspend()

    yield from _goes_live(daemon, drops, stop)
    yield from _was_deferred_for(daemon, "timeout")
    yield from (f"request: {failure}" for failure in traffic.failures[:3])


def _worker_exceeds(daemon: Daemon, traffic: Traffic, drops: Drops) -> Iterator[str]:
    daemon.config["worker"] |= {"memory_max": "60MiB", "tries": 1000}
    daemon.reload()

    def raise_limit() -> None:
        eventually(lambda: any(update["code"] == "memory" for update in daemon.updates()), "a deferral")
        daemon.config["worker"]["memory_max"] = "4GiB"
        daemon.reload()

    yield from _goes_live(daemon, drops, raise_limit)
    yield from _was_deferred_for(daemon, "memory")
    yield from (f"request: {failure}" for failure in traffic.failures[:3])


def _generation_stops(daemon: Daemon, traffic: Traffic, drops: Drops) -> Iterator[str]:
    (generation,) = children(daemon, "service.inference.main")
    generation.suspend()

    def replaced() -> bool:
        return any(child.pid != generation.pid for child in children(daemon, "service.inference.main"))

    eventually(replaced, "another process", _HUNG_S)
    if any("504" not in failure and "503" not in failure for failure in traffic.failures):
        yield f"requests failed otherwise than by their deadline: {traffic.failures[:3]}"
    yield from _goes_live(daemon, drops)


def _fork_server_stops(daemon: Daemon, traffic: Traffic, drops: Drops) -> Iterator[str]:
    (forker,) = children(daemon, "service.inference.fork_server")
    forker.suspend()
    source = drops.new()
    daemon.drop(source)
    daemon.update_of(source.name, timeout_s=_HUNG_S)
    yield from broken(daemon, source.name)
    yield from (f"request: {failure}" for failure in traffic.failures[:3])


def _supervisor_stops(daemon: Daemon, traffic: Traffic, drops: Drops) -> Iterator[str]:
    os.kill(daemon.pid, signal.SIGSTOP)
    time.sleep(_STOPPED_S)
    os.kill(daemon.pid, signal.SIGCONT)
    yield from _goes_live(daemon, drops)
    yield from (f"request: {failure}" for failure in traffic.failures[:3])


def _was_deferred_for(daemon: Daemon, code: str) -> Iterator[str]:
    update = daemon.updates()[0]
    events = daemon.get(f"/edged/v1/updates/{update['id']}").json()["events"]
    if not any(event["state"] == "DEFERRED" and event["detail"].get("code") == code for event in events):
        yield f"it was not deferred for {code}"


STOPS: dict[str, Callable[[Daemon, Traffic, Drops], Iterator[str]]] = {
    "worker stopped": _worker_stops,
    "worker over its memory limit": _worker_exceeds,
    "generation stopped": _generation_stops,
    "fork server stopped": _fork_server_stops,
    f"supervisor stopped for {_STOPPED_S:g} s": _supervisor_stops,
}
