"""What the daemon is doing when it is killed: a state folder to begin with, an action, and how it has to end."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from tests.support.daemon import Daemon, eventually, processes
from tests.support.tasks import Task

FIRST, SECOND, THIRD, JUNK = "first.pt", "second.pt", "third.pt", "junk.pt"


@dataclass(frozen=True)
class Scenario:
    """Something that the daemon does.

    Attributes:
        name: Its name, for people.
        files: Files that have been dropped before, in order; the last good one is live.
        act: Begins it; returns at once, or when it is done.
        dropped: Files that it drops.
        ends: Allowed last states of each update, by file name; of the newest update of that name.
        retries: Whether it makes new updates of files that were dropped before.
    """

    name: str
    files: tuple[str, ...]
    act: Callable[[Daemon, Task], None]
    ends: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...] = ()
    retries: bool = False


def _drop(name: str) -> Callable[[Daemon, Task], None]:
    return lambda daemon, task: daemon.drop(task.first.with_name(name), name)


def _post(target: str) -> Callable[[Daemon, Task], None]:
    def act(daemon: Daemon, _: Task) -> None:
        with contextlib.suppress(httpx.TransportError):  # it was killed before it answered
            daemon.post(f"/edged/v1/{target}")

    return act


GOOD = ("COMMITTED",)
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("update", (FIRST,), _drop(SECOND), {FIRST: GOOD, SECOND: GOOD}, dropped=(SECOND,)),
        Scenario("rejection", (FIRST,), _drop(JUNK), {FIRST: GOOD, JUNK: ("REJECTED",)}, dropped=(JUNK,)),
        Scenario(
            "rollback",
            (FIRST, SECOND),
            _post("models/digits/rollback"),
            {FIRST: GOOD, SECOND: ("COMMITTED", "ROLLED_BACK")},
        ),
        Scenario("pin", (FIRST, SECOND), _post("models/digits/pin"), {FIRST: GOOD, SECOND: GOOD}),
        Scenario("retry", (FIRST, JUNK), _post("updates/2/retry"), {FIRST: GOOD, JUNK: ("REJECTED",)}, retries=True),
    )
}


class Bases:
    """State folders that scenarios begin with, each made once, and the answers that their models give.

    Args:
        folder: Folder to keep them in.
        task: Checkpoints and images.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.task = task
        self._answers: dict[str, object] = {}  # of the model made from each file
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        junk = task.first.with_name(JUNK)
        junk.write_bytes(b"no checkpoint")
        write_anew(task, task.first.with_name(THIRD))
        self.image = next(iter(sorted(task.test.rglob("*.png"))))

    def answer(self, daemon: Daemon) -> object:
        """Return what the live model makes of one image."""
        reply = daemon.infer(self.image)
        return reply.json()["outputs"] if reply.status_code == 200 else f"{reply.status_code} {reply.text:.200}"

    def learn(self, daemon: Daemon, file: str) -> None:
        """Note the answer of the model that was made from a file, if it is live."""
        newest = next(update for update in daemon.updates() if update["file_name"] == file)
        if newest["state"] == "COMMITTED":
            self._answers[file] = self.answer(daemon)

    def expected(self, file: str) -> object:
        """Return the answer of the model that is made from a file; all but SECOND have the network of FIRST."""
        name = SECOND if file == SECOND else FIRST
        if name not in self._answers:
            self.make((FIRST, SECOND))
        return self._answers[name]

    def make(self, files: tuple[str, ...]) -> Path:
        """Return a state folder, with its daemon stopped, after files were dropped one after another."""
        folder = self._folder / "-".join(files)
        if folder.exists():
            return folder
        if len(files) > 1:
            shutil.copytree(self.make(files[:-1]), folder, symlinks=True)
        folder.mkdir(exist_ok=True)
        with started(Daemon(folder, self.task.calibration)) as daemon:
            daemon.drop(self.task.first.with_name(files[-1]), files[-1])
            daemon.update_of(files[-1])
            daemon.await_no_claims()
            self.learn(daemon, files[-1])
        return folder

    @contextlib.contextmanager
    def copy(self, begin: tuple[str, ...] | Path, folder: Path) -> Iterator[Daemon]:
        """Yield a daemon, not started, on a copy of a state folder, or of one after files were dropped."""
        shutil.copytree(begin if isinstance(begin, Path) else self.make(begin), folder, symlinks=True)
        daemon = Daemon(folder, self.task.calibration)
        try:
            yield daemon
        finally:
            daemon.close()
            eventually(lambda: not processes(daemon), "all processes have ended")
            shutil.rmtree(folder)


def write_anew(task: Task, path: Path) -> None:
    """Write the first network once more, as a file of other content."""
    torch.save({"state_dict": torch.load(task.first), "epoch": path.name}, path)


@contextlib.contextmanager
def started(daemon: Daemon) -> Iterator[Daemon]:
    """Run a daemon during the block, and stop it."""
    try:
        yield daemon.start()
        if (code := daemon.stop()) != 0:
            raise AssertionError(f"the daemon ended with exit code {code}")
    finally:
        daemon.close()
