"""A daemon under live traffic, the drops that it is given, and what has to hold of both."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import torch

from benchmarks.crashes.invariants import damaged
from edged.artifacts.store import ModelStore
from tests.support.daemon import NO_CERTIFICATES, Daemon
from tests.support.tasks import Task

MODEL = "digits"
# Seconds between two tries: short, since what is counted is what is lost.
SETTINGS: dict[str, Any] = {"worker": {"retry_s": 0.2, "recheck_s": 1}, "log": {"format": "human", "level": "info"}}
_PAUSE_S = 0.05  # between two requests


class Drops:
    """New checkpoints of one trained network, each with another content.

    Args:
        task: The trained network.
        folder: Folder for the files.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self._state = torch.load(task.first, weights_only=True)
        self._folder = folder
        self._numbers = itertools.count(1)

    def new(self) -> Path:
        """Write a checkpoint that has not been there before; its answers are as good as the others'."""
        number = next(self._numbers)
        key = next(key for key, value in self._state.items() if value.is_floating_point())
        state = self._state | {key: self._state[key] + number * 1e-6}
        path = self._folder / f"{number}.pt"
        torch.save(state, path)
        return path


class Traffic:
    """Requests, one after another, as long as the block lasts.

    Attributes:
        answers: Number of answers.
        failures: What was no answer.
    """

    def __init__(self, daemon: Daemon, image: Path) -> None:
        self._url = f"{daemon.status()['address']}/v2/models/{MODEL}/infer"
        self._image = image.read_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers = 0
        self.failures: list[str] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        headers = {"Content-Type": "image/png"}
        with httpx.Client(timeout=60, verify=NO_CERTIFICATES, trust_env=False) as client:
            while not self._over.wait(_PAUSE_S):
                try:
                    answer = client.post(self._url, content=self._image, headers=headers)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                self.answers += 1
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code} {answer.text:.200}")


@contextmanager
def serving(
    folder: Path, log_file: Path, task: Task, drops: Drops, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Daemon, Traffic]]:
    """Run a daemon with two generations, under traffic, during the block.

    Args:
        folder: Folder for config and state.
        log_file: File for the log.
        task: Checkpoints and images.
        drops: Checkpoints of the two generations.
        environment: Variables of its environment, besides those of this process.
    """
    folder.mkdir(exist_ok=True)
    daemon = Daemon(folder, task.calibration, **SETTINGS)
    daemon.log = log_file
    daemon.environment |= environment or {}
    try:
        daemon.start()
        for _ in range(2):
            daemon.put_live(drops.new())
        with Traffic(daemon, next(iter(sorted(task.test.rglob("*.png"))))) as traffic:
            yield daemon, traffic
    finally:
        daemon.close()


def place(daemon: Daemon, source: Path) -> Path:
    """Copy a checkpoint into the drop folder under a hidden name; renaming it to its own name drops it."""
    hidden = daemon.state / "drop" / MODEL / f".{source.name}"
    shutil.copy(source, hidden)
    return hidden


def drop(hidden: Path) -> None:
    """Rename a hidden file to its own name."""
    hidden.rename(hidden.with_name(hidden.name[1:]))


def update_of(daemon: Daemon, name: str) -> dict[str, Any]:
    """Return the newest update of a file; {} if there is none yet."""
    return next((update for update in daemon.updates() if update["file_name"] == name), {})


def reason_to_wait(daemon: Daemon, name: str) -> str | None:
    """Return the reason that status or history give for a file's wait; None if it does not wait."""
    update = update_of(daemon, name)
    if update.get("reason") and update["state"] not in ("DROPPED", "SETTLED"):
        return f"{update['state']}: {update['reason']}"
    for entry in daemon.status()["unclaimed"]:
        if entry["path"].endswith(f"/{name}") and "cannot be taken now" in entry["reason"]:
            return f"in the drop folder: {entry['reason']}"
    return None


def broken(daemon: Daemon, name: str) -> Iterator[str]:
    """Yield what does not hold after a drop that met a fault has come to its end, and the fault is gone.

    It is live, it was applied once, its files are whole and nothing is left of the attempts; disk and journal agree.
    """
    update = update_of(daemon, name)
    if update.get("state") != "COMMITTED":
        yield f"{name} ended as {update.get('state')}: {update.get('reason')}"
        return
    if daemon.generation() != update["generation"]:
        yield f"generation {daemon.generation()} serves, not {update['generation']}"
    if (found := sum(update["file_name"] == name for update in daemon.updates())) != 1:
        yield f"{name} became {found} updates"
    state = daemon.state
    store = ModelStore(state / "models")
    if store.current(MODEL) != update["generation"]:
        yield f"current is {store.current(MODEL)}, the journal says {update['generation']}"
    yield from damaged(state)
    yield from (f"left behind: {path.relative_to(state)}" for path in _left(state))


def _left(state: Path) -> list[Path]:
    """Return what an update has left behind; wait for the removal of its claimed file, which follows its end."""
    end = time.monotonic() + 10
    while True:
        folders = (state / "claimed", state / "staging", state / "drop" / MODEL)
        found = [path for folder in folders for path in folder.iterdir()]
        found += [path for path in state.rglob(".*.tmp") if not path.is_relative_to(state / "drop")]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)
