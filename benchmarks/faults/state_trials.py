"""A daemon whose state is damaged: what it had held must be held after the damage, whatever the damage."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults.journal_damage import DAMAGES
from tests.support.daemon import Daemon, eventually, tracebacks
from tests.support.lost_folder import Loss, emptied, has_content, moved, replaced
from tests.support.tasks import Task

PINNED, PAUSED, OTHER = "digits", "paused", "other"
_BAD = b"PK\x03\x04 this is no checkpoint" * 100


class Bench:
    """A daemon with a pinned and a paused model, each with a drop that is held, and a model with a file that is banned.

    Args:
        folder: Empty folder to work in.
        task: Networks and images.

    Attributes:
        daemon: The daemon; not running.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self._template, self._task = folder / "template", task
        self._older = folder / "older.db"
        place = folder / "device"
        place.mkdir()
        names = (PINNED, PAUSED, OTHER)
        models = [
            {
                "name": name,
                "calibration": {"dir": str(task.calibration)},
                "input": {"size": 8, "resize": 8},
                "quantization": {"bits": 4},
            }
            for name in names
        ]
        self._drops = place / "drop"
        self._drops.mkdir()
        self.daemon = Daemon(place, task.calibration, models=models, drop_dir=str(self._drops))
        try:
            self._prepare()
        finally:
            self.daemon.close()
        shutil.copytree(
            self.daemon.state, self._template / "state", symlinks=True, ignore=shutil.ignore_patterns("*.sock")
        )
        shutil.copytree(self._drops, self._template / "drop")

    def _prepare(self) -> None:
        daemon = self.daemon.start()
        self.drop(self._task.first.read_bytes(), PINNED, "first.pt")
        require(daemon.update_of("first.pt")["state"] == "COMMITTED", "the first model goes live")
        self.drop(_BAD, OTHER, "bad.pt")
        require(daemon.update_of("bad.pt")["state"] == "REJECTED", "the bad file is rejected")
        connections = (sqlite3.connect(path) for path in (daemon.state / "journal.db", self._older))
        with contextlib.closing(next(connections)) as journal, contextlib.closing(next(connections)) as older:
            journal.backup(older)
        for model, action in ((PINNED, "pin"), (PAUSED, "pause")):
            require(daemon.post(f"/edged/v1/models/{model}/{action}").status_code == 200, action)
            self.drop(self._task.second.read_bytes(), model, "held.pt")
        eventually(lambda: self._held() == [1, 1], "both are held")
        daemon.kill()

    def drop(self, content: bytes, model: str, name: str) -> Path:
        """Rename a file into place in the drop folder of a model."""
        hidden = self._drops / model / f".{name}"
        hidden.write_bytes(content)
        return hidden.rename(hidden.with_name(name))

    def reset(self) -> None:
        """Put everything back as it was when the daemon was killed."""
        self.daemon.close()
        for name in ("state", "drop"):
            shutil.rmtree(self.daemon.folder / name, ignore_errors=True)
            shutil.copytree(self._template / name, self.daemon.folder / name, symlinks=True)
        self.daemon.log.unlink(missing_ok=True)

    def at_rest(self, damage: str) -> dict[str, Any]:
        """Damage the state of the killed daemon, start it, and return what was lost and what was told."""
        self.reset()
        DAMAGES[damage](self.daemon.state, self._older)
        with self._faults(damage) as found:
            self.daemon.start()
            found += self._lost()
        return self._row(found)

    def while_running(self, damage: str) -> dict[str, Any]:
        """Damage the state under the running daemon, and return what was lost and what was told."""
        self.reset()
        with self._faults(damage) as found:
            self.daemon.start()
            eventually(lambda: self._held() == [1, 1], "both are held")
            with self.daemon.tcp() as client:
                found += LIVE[damage](self, client)
            found += self._lost()
        return self._row(found)

    @contextlib.contextmanager
    def _faults(self, what: str) -> Iterator[list[str]]:
        found: list[str] = []
        try:
            yield found
        except AssertionError as error:
            found.append(f"{what}: {str(error).splitlines()[0]:.200}")
        finally:
            self.daemon.close()

    def _row(self, found: list[str]) -> dict[str, Any]:
        log = self.daemon.log.read_text(errors="replace")
        found += tracebacks(log)
        told = any(words in log for words in ("was damaged: ", "is damaged: ", "drops stay where they are"))
        return {"told": told, "faults": found}

    def _held(self) -> list[int]:
        held = {model["name"]: int(model["held"]) for model in self.daemon.status()["models"]}
        return [held[PINNED], held[PAUSED]]

    def _lost(self) -> list[str]:
        """Return what was held before and is not any more, and which answers are missing."""
        eventually(lambda: self._held() == [1, 1], "the drops are held")
        models = {model["name"]: model for model in self.daemon.status()["models"]}
        self.drop(_BAD, OTHER, "again.pt")
        again = self.daemon.update_of("again.pt")
        answer = self.daemon.infer(next(self._task.test.rglob("*.png")), model=PINNED)
        pages = ("/", "/edged/v1/updates", f"/edged/v1/models/{PINNED}/history", f"/edged/v1/models/{OTHER}/history")
        kept = {
            "the pin": models[PINNED]["pinned"],
            "the pause": models[PAUSED]["paused"],
            "the ban": again["state"] == "REJECTED" and "the same file was rejected before" in again["reason"],
            "a held drop": all((self._drops / model / "held.pt").exists() for model in (PINNED, PAUSED)),
            "the generation in service": models[PINNED]["generation"] == 1 and models[PAUSED]["generation"] is None,
            "an answer": answer.status_code == 200 and answer.json()["model_version"] == "1",
            "a page or history": all(self.daemon.get(page).status_code == 200 for page in pages),
        }
        return [f"lost: {what}" for what, is_kept in kept.items() if not is_kept]

    def serves(self, client: httpx.Client) -> bool:
        """Return whether the pinned model answers."""
        image = next(self._task.test.rglob("*.png")).read_bytes()
        target = f"/v2/models/{PINNED}/infer"
        return client.post(target, content=image, headers={"Content-Type": "image/png"}).status_code == 200


def require(condition: bool, what: str) -> None:
    """Raise an AssertionError unless a condition holds that the trial needs."""
    if not condition:
        raise AssertionError(f"{what} did not happen")


def _problems(client: httpx.Client) -> list[str]:
    answer = client.get("/edged/v1/status")
    return list(answer.json()["state_problems"]) if answer.status_code == 200 else []


def _journal(change: Callable[[Path], object]) -> Callable[[Bench, httpx.Client], list[str]]:
    """Return what changes journal.db under the daemon and waits until that is told."""

    def damage(bench: Bench, client: httpx.Client) -> list[str]:
        change(bench.daemon.state / "journal.db")
        codes = set()

        def told() -> list[str]:
            codes.add(client.get("/edged/v1/updates").status_code)
            return _problems(client)

        eventually(told, "it is told")
        return [f"/edged/v1/updates answered {code}" for code in codes - {200, 503}]

    return damage


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)


def _replace(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"another file" * 1000)


def _folder(loss: Loss) -> Callable[[Bench, httpx.Client], list[str]]:
    """Return what takes the state folder away, drops a file meanwhile, and brings the folder back."""

    def damage(bench: Bench, client: httpx.Client) -> list[str]:
        state = bench.daemon.state
        with loss(state, bench.daemon.folder / "away"):
            eventually(lambda: _problems(client), "it is told")
            found = [] if bench.serves(client) else ["lost: an answer"]
            waiting = bench.drop(_BAD + b"!", OTHER, "meanwhile.pt")
            listed = "drops stay where they are"
            eventually(lambda: listed in client.get("/edged/v1/status").text and waiting.exists(), "the drop waits")
            if has_content(state):
                found.append("something was written into another folder")
        eventually(lambda: not _problems(client), "it goes on")
        taken = bench.daemon.update_of("meanwhile.pt")
        return found if taken["state"] == "REJECTED" else [*found, f"the drop of meanwhile is {taken['state']}"]

    return damage


LIVE: Mapping[str, Callable[[Bench, httpx.Client], list[str]]] = {
    "journal deleted": _journal(Path.unlink),
    "journal replaced": _journal(_replace),
    "journal overwritten": _journal(lambda path: _overwrite(path, b"no database" * 2000)),
    "journal emptied": _journal(lambda path: _overwrite(path, b"")),
    "state folder moved away": _folder(moved),
    "state folder replaced by an empty one": _folder(replaced),
    "state folder emptied": _folder(emptied),
}
