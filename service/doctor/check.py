"""What a check says, and the machine that it looks at."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"

_COMMAND_S = 10.0
_TIME_ERROR = 5  # of adjtimex(2): the clock is not synchronized
_TIMEX_BYTES = 512  # struct timex is 208 bytes or less


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        level: "ok", "warn" or "fail".
        detail: What was found, one line.
        fix: What to do, with the command in backticks; "" if nothing.
        exit_code: Of the command, if this fails.
    """

    name: str
    level: str
    detail: str
    fix: str = ""
    exit_code: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def run_command(command: Sequence[str]) -> str | None:
    """What a command prints; None if there is no such command, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def clock_is_synchronized() -> bool | None:
    """What the kernel says; None if it does not."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # all zero: change nothing
    return None if state < 0 else bool(state != _TIME_ERROR)


@dataclass(frozen=True)
class Machine:
    """Where checks look; tests bring a folder of their own.

    Attributes:
        root: Above /proc, /sys, /dev, /etc and /run.
        uid: Of the user who asks.
        groups: Likewise.
        run: Runs a command, see `run_command`.
        now: Seconds since 1970.
        synchronized: See `clock_is_synchronized`.
    """

    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)
    groups: frozenset[int] = field(default_factory=lambda: frozenset((os.getegid(), *os.getgroups())))
    run: Callable[[Sequence[str]], str | None] = run_command
    now: Callable[[], float] = time.time
    synchronized: Callable[[], bool | None] = clock_is_synchronized

    def path(self, absolute: str) -> Path:
        """A path of the machine, such as "/proc/meminfo"."""
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str | None:
        """The text of a small file; None if it cannot be read."""
        try:
            return self.path(absolute).read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def number(self, absolute: str) -> int | None:
        """The number in a small file; None if there is none."""
        text = (self.read(absolute) or "").strip()
        return int(text) if text.isdecimal() else None

    def may_use(self, status: os.stat_result) -> bool:
        """Whether the user may read and write a file with this status."""
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return status.st_mode >> shift & 0o6 == 0o6

    def user(self) -> str:
        """The user's name, or number."""
        return self._name("/etc/passwd", self.uid)

    def group(self, gid: int) -> str:
        """A group's name, or number."""
        return self._name("/etc/group", gid)

    def _name(self, file: str, number: int) -> str:
        entries: Iterable[list[str]] = (line.split(":") for line in (self.read(file) or "").splitlines())
        return next((entry[0] for entry in entries if entry[2:3] == [str(number)]), str(number))
