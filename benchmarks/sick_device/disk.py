"""A disk that is full, has no inodes left, or fails, at each write of an update; and what becomes of the update."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.sick_device.daemon import MODEL, Drops, Traffic, broken, drop, place, reason_to_wait, update_of
from tests.support.daemon import Daemon, tracebacks
from tests.support.small_disk import PAGE_BYTES, SmallDisk
from tests.support.syscall_faults import Fault, attached

SIZE, INODES = "48m", 2000
_PATIENCE_S = 60.0  # for an update to meet the fault or to end
_SHOWN_S = 0.5  # for which the fault stays after the update has met it
# Calls that only concern the disk; of a write(2), only a full disk says whether it goes to the disk or into a pipe.
SYNCS = ("fsync", "fdatasync")
NAMES = ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat")
JOURNAL = ("pwrite64", "ftruncate")

# What is looked for before the disk is filled: the update has come that far.
PLACES = {
    "claimed": "claimed/*/file",
    "staged": "staging/*",
    "weights": "staging/*/weights.safetensors",
    "published": f"models/{MODEL}/gen/*",
}


@dataclass
class Outcome:
    """What became of one drop.

    Attributes:
        moment: When the fault began.
        waited: Reason that status or history gave while the fault lasted; None if nothing failed.
        seconds: From the end of the fault to the end of the update.
        faults: What should not have happened.
    """

    moment: str
    waited: str | None
    seconds: float
    faults: list[str] = field(default_factory=list)


class Trial:
    """A daemon that takes one drop after another, each with a fault on its way.

    Args:
        daemon: Daemon that serves.
        traffic: Its traffic.
        drops: Checkpoints to drop.
    """

    def __init__(self, daemon: Daemon, traffic: Traffic, drops: Drops) -> None:
        self.daemon = daemon
        self._traffic = traffic
        self._drops = drops

    def run(
        self, moment: str, fault: Callable[[Callable[[], None]], contextlib.AbstractContextManager[object]]
    ) -> Outcome:
        """Drop a checkpoint into a fault, end the fault, and wait for the end of the update.

        Args:
            moment: Name of the moment.
            fault: Context in which the fault lasts; it is given what drops the file, and calls it.
        """
        daemon = self.daemon
        source = self._drops.new()
        hidden, logged = place(daemon, source), daemon.log.stat().st_size
        with fault(lambda: drop(hidden)):
            waited = self._until_it_waits(source.name)
        start = time.monotonic()
        faults = []
        try:
            daemon.update_of(source.name)
        except AssertionError as error:
            faults.append(str(error))
        seconds = round(time.monotonic() - start, 1)
        faults += [*broken(daemon, source.name), *self._failures()]
        log = daemon.log.read_bytes()[logged:].decode(errors="replace")
        faults += tracebacks(log)
        if waited is not None and " error " not in log and " warning " not in log:
            faults.append("the log does not say why it waited")
        return Outcome(moment, waited, seconds, [f"{moment}: {fault}" for fault in faults])

    def _until_it_waits(self, name: str) -> str | None:
        """Return why a file waits; None if it goes live in spite of the fault."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            if (reason := reason_to_wait(self.daemon, name)) is not None:
                time.sleep(_SHOWN_S)
                return reason
            if update_of(self.daemon, name).get("state") in ("COMMITTED", "FAILED", "REJECTED"):
                return None
            time.sleep(0.02)
        return None

    def _failures(self) -> list[str]:
        failed, self._traffic.failures = self._traffic.failures, []
        if self.daemon.process is not None and (code := self.daemon.process.poll()) is not None:
            failed.append(f"the daemon ended with exit code {code}")
        return [f"request: {failure}" for failure in failed[:3]]


@contextlib.contextmanager
def full(disk: SmallDisk, go: Callable[[], None], pages: int) -> Iterator[None]:
    """Leave so many pages free when the file is dropped."""
    disk.fill(pages * PAGE_BYTES)
    with cleared(disk):
        go()
        yield


@contextlib.contextmanager
def crowded(disk: SmallDisk, go: Callable[[], None], inodes: int) -> Iterator[None]:
    """Leave so many inodes free when the file is dropped."""
    disk.use_up_inodes(inodes)
    with cleared(disk):
        go()
        yield


@contextlib.contextmanager
def filled_at(state: Path, disk: SmallDisk, go: Callable[[], None], place: str, pages: int) -> Iterator[None]:
    """Fill the disk up to some pages as soon as the update has come to a place."""
    before = set(state.glob(PLACES[place]))
    go()
    end = time.monotonic() + _PATIENCE_S
    while not set(state.glob(PLACES[place])) - before and time.monotonic() < end:
        time.sleep(0.001)
    disk.fill(pages * PAGE_BYTES)
    with cleared(disk):
        yield


@contextlib.contextmanager
def cleared(disk: SmallDisk) -> Iterator[None]:
    """Clear the disk at the end of the block."""
    try:
        yield
    finally:
        disk.clear()


@contextlib.contextmanager
def failing(daemon: Daemon, go: Callable[[], None], log: Path, fault: Fault) -> Iterator[None]:
    """Have calls of the daemon and of what it starts fail."""
    with attached(daemon.pid, log, fault, calls=fault.calls, follow=True):
        go()
        yield
