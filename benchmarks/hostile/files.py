"""Read the hostile files in another process, and count what they did."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hostile.corpus import Hostile

MAX_BYTES = 1 << 30
MAX_REASON = 600  # characters
PATIENCE_S = 300.0  # for a file, on a busy machine
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reading:
    """What reading a hostile file did.

    Attributes:
        file: The file.
        outcome: Code of its rejection, "accepted", "crash", "died" or "hung".
        reason: The rejection, or what went wrong.
        events: Forbidden events, see `benchmarks.hostile.reader`.
        bytes: Memory beyond that in use before.
        seconds: Time that it took.
    """

    file: Hostile
    outcome: str
    reason: str = ""
    events: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0

    @property
    def fault(self) -> str | None:
        """What is wrong with how the file was read, in one line; None if it is harmless."""
        if self.outcome in ("crash", "died", "hung"):
            return f"{self.outcome}: {self.reason}"
        if self.events:
            return f"did {', '.join(self.events)[:300]}"
        if self.file.refused and self.outcome == "accepted":
            return "accepted"
        if self.bytes > MAX_BYTES:
            return f"took {self.bytes >> 20} MiB"
        if not self.reason.isprintable() or len(self.reason) > MAX_REASON:
            return f"its reason is not one short line: {self.reason[:80]!a}"
        return None


class _Reader:
    """The process that reads the files."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.hostile.reader"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1
        )
        self._say(folder)

    def _say(self, path: Path) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()

    def read(self, path: Path) -> dict[str, Any] | None:
        """Return the answer for a file; None if the process ended, and then `ended` says how."""
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        try:
            self._say(path)
        except BrokenPipeError:
            return None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        line = self._process.stdout.readline() if ready else ""
        return dict(json.loads(line)) if line else None

    def ended(self) -> tuple[str, str]:
        """Stop the process and return how it ended: "hung", or "died" with its exit status."""
        status = self._process.poll() if self._process.poll() is not None else None
        if status is None:
            try:
                status = self._process.wait(1)
            except subprocess.TimeoutExpired:
                self.close()
                return "hung", f"no answer within {PATIENCE_S:g} s"
        self.close()
        return "died", f"the process ended with status {status}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def read_all(files: Iterable[Hostile], folder: Path) -> Iterator[Reading]:
    """Yield what reading each file did. A process that dies is replaced, and its file counts as a fault.

    Args:
        files: The files.
        folder: Folder to write them to, one at a time.
    """
    reader = _Reader(folder)
    path = folder / "hostile.pt"
    try:
        for file in files:
            path.write_bytes(file.content)
            answer = reader.read(path)
            if answer is None:
                yield Reading(file, *reader.ended())
                reader = _Reader(folder)
            else:
                yield Reading(file, **{**answer, "events": tuple(answer["events"])})
    finally:
        reader.close()


def summary(readings: Iterable[Reading]) -> list[dict[str, Any]]:
    """Return a row for each kind: how many files, how many were refused, what the worst one took, and its faults."""
    kinds: dict[str, list[Reading]] = {}
    for reading in readings:
        kinds.setdefault(reading.file.kind, []).append(reading)
    return [
        {
            "kind": kind,
            "files": len(each),
            "refused": sum(reading.outcome not in ("accepted", "crash", "died", "hung") for reading in each),
            "ran_code": sum(bool(reading.events) for reading in each),
            "faults": [f"{reading.file.name}: {reading.fault}" for reading in each if reading.fault is not None],
            "mebibytes": max(reading.bytes for reading in each) >> 20,
            "seconds": round(max(reading.seconds for reading in each), 2),
        }
        for kind, each in kinds.items()
    ]
