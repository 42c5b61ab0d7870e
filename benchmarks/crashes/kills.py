"""Random kills of every process of the daemon while it takes files and answers requests."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.crashes.invariants import broken_on_disk, broken_while_running, come_to_rest
from benchmarks.crashes.scenario import FIRST, GOOD, Bases, Scenario, write_anew
from tests.support.daemon import Daemon, children, eventually

MODULES = {
    "worker": "service.worker.main",
    "generation": "service.inference.main",
    "fork server": "service.inference.fork_server",
}
VICTIMS = ("supervisor", *MODULES)

_KILLS_A_FILE = 16
_MOST_OF_SUPERVISOR = 8  # in one update: the daemon gives it up after ten interruptions
_PAUSE_S = 0.4  # at most, between two kills
_AWAIT_VICTIM_S = 2.0  # before another one is taken
_REQUEST_PAUSE_S = 0.02
_AWAY = (502, 503, 504)  # statuses of a request that could not be answered because of a kill


@dataclass
class Load:
    """A client that asks for one image over and over.

    Attributes:
        statuses: Number of answers by status; "no connection" while no supervisor listened.
        wrong: What was wrong with answers that should not have been given.
        longest_s: Longest time between two good answers, in seconds.
    """

    daemon: Daemon
    bases: Bases
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        """Ask during the block."""
        thread = threading.Thread(target=self._ask)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def _ask(self) -> None:
        expected = self.bases.expected(FIRST)  # all files have the weights of the first one
        last = time.monotonic()
        while not self._over.wait(_REQUEST_PAUSE_S):
            try:
                reply = self.daemon.infer(self.bases.image)
            except httpx.TransportError:
                self.statuses["no connection"] += 1
                continue
            self.statuses[str(reply.status_code)] += 1
            if reply.status_code == 200:
                self.longest_s, last = max(self.longest_s, time.monotonic() - last), time.monotonic()
                if reply.json()["outputs"] != expected:
                    self.wrong.append(f"answered {reply.text:.300}")
            elif reply.status_code not in _AWAY:
                self.wrong.append(f"answered {reply.status_code}: {reply.text:.300}")


@dataclass(frozen=True)
class Kills:
    """What came of a series of kills.

    Attributes:
        kills: Number of kills by victim.
        files: Number of files that were dropped and committed meanwhile.
        statuses: Answers of the client by status.
        longest_s: Longest time between two good answers, in seconds.
        broken: What did not hold.
    """

    kills: Counter[str]
    files: int
    statuses: Counter[str]
    longest_s: float
    broken: tuple[str, ...]


def kill_at_random(bases: Bases, folder: Path, count: int, seed: int) -> Kills:
    """Drop files and kill processes until `count` were killed; victims and moments are drawn.

    Several kills hit one update, most before the daemon has recovered from the last one. Then it has to commit the
    update, and everything else that must hold is checked.
    """
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    kills: Counter[str] = Counter()
    broken: list[str] = []
    files = 0
    with bases.copy((FIRST,), folder / f"kills-{seed}") as daemon:
        daemon.config["worker"]["tries"] = count  # a worker that was killed has failed
        with Load(daemon.start(), bases).running() as load:
            while kills.total() < count:
                name, files = f"{files}.pt", files + 1
                _drop_anew(daemon, bases, name)
                of_file: Counter[str] = Counter()
                for _ in range(min(_KILLS_A_FILE, count - kills.total())):
                    time.sleep(draw.uniform(0.0, _PAUSE_S))
                    victims = VICTIMS if of_file["supervisor"] < _MOST_OF_SUPERVISOR else tuple(MODULES)
                    if (victim := _kill_one(daemon, draw.sample(victims, len(victims)))) is not None:
                        of_file[victim] += 1
                kills += of_file
                eventually(lambda: bases.answer(daemon) == bases.expected(FIRST), "service")
                ended = Scenario("kills", (FIRST,), lambda *_: None, {name: GOOD}, dropped=(name,))
                come_to_rest(daemon, ended)
                broken += broken_while_running(daemon, ended, bases)
        broken += load.wrong
        if (code := daemon.stop()) != 0:
            broken.append(f"the daemon ended with exit code {code}")
        broken += broken_on_disk(daemon)
    return Kills(kills, files, load.statuses, load.longest_s, tuple(broken))


def _drop_anew(daemon: Daemon, bases: Bases, name: str) -> None:
    """Drop the first network once more, as another file."""
    path = daemon.folder / name
    write_anew(bases.task, path)
    daemon.drop(path)
    path.unlink()


def _kill_one(daemon: Daemon, victims: Sequence[str]) -> str | None:
    """Kill the first of the victims that is there, and start the daemon again if it was the supervisor.

    Returns:
        Whom; None if none of them was there.
    """
    for victim in victims:
        if victim == "supervisor":
            daemon.close()
            daemon.spawn()
            return victim
        with contextlib.suppress(AssertionError, psutil.Error):  # there is none, or it has just ended
            eventually(lambda name=victim: children(daemon, MODULES[name]), victim, _AWAIT_VICTIM_S)[0].kill()
            return victim
    return None
