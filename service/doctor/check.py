"""The result of a check, and the machine that checks query."""

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
_TIME_ERROR = 5  # result of adjtimex(2): the clock is not synchronized
_TIMEX_BYTES = 512  # struct timex is 208 bytes or less


@dataclass(frozen=True)
class Check:
    """One finding of a check.

    Attributes:
        name: Name of what was checked.
        level: Severity: "ok", "warn" or "fail".
        detail: Description of the finding in one line.
        fix: Remedy, with commands in backticks; "" if none is needed.
        exit_code: Exit code of `edged doctor` if the level is "fail".
    """

    name: str
    level: str
    detail: str
    fix: str = ""
    exit_code: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Convert the finding to JSON types."""
        return asdict(self)


def run_command(command: Sequence[str]) -> str | None:
    """Return the standard output of a command, or None if the command does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def clock_is_synchronized() -> bool | None:
    """Return whether the kernel reports a synchronized clock, or None if it does not report this."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # all zero, so that nothing is changed
    return None if state < 0 else bool(state != _TIME_ERROR)


@dataclass(frozen=True)
class Machine:
    """The machine that is checked; tests use a folder of their own as its root.

    Attributes:
        root: Parent folder of /proc, /sys, /dev, /etc and /run.
        uid: ID of the user that runs the checks.
        groups: IDs of the user's groups.
        run: Function that runs a command, see `run_command`.
        now: Function that returns the time in seconds since 1970.
        synchronized: Function that returns whether the clock is synchronized, see `clock_is_synchronized`.
    """

    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)
    groups: frozenset[int] = field(default_factory=lambda: frozenset((os.getegid(), *os.getgroups())))
    run: Callable[[Sequence[str]], str | None] = run_command
    now: Callable[[], float] = time.time
    synchronized: Callable[[], bool | None] = clock_is_synchronized

    def path(self, absolute: str) -> Path:
        """Return the path below `root` of an absolute path such as "/proc/meminfo"."""
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str | None:
        """Return the text of a small file, or None if it cannot be read."""
        try:
            return self.path(absolute).read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def number(self, absolute: str) -> int | None:
        """Return the number in a small file, or None if it has none."""
        text = (self.read(absolute) or "").strip()
        return int(text) if text.isdecimal() else None

    def may_use(self, status: os.stat_result) -> bool:
        """Return whether the user may read and write a file with this status."""
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return status.st_mode >> shift & 0o6 == 0o6

    def user(self) -> str:
        """Return the user's name, or the user ID if it has no name."""
        return self._name("/etc/passwd", self.uid)

    def group(self, gid: int) -> str:
        """Return a group's name, or the group ID if it has no name."""
        return self._name("/etc/group", gid)

    def _name(self, file: str, number: int) -> str:
        entries: Iterable[list[str]] = (line.split(":") for line in (self.read(file) or "").splitlines())
        return next((entry[0] for entry in entries if entry[2:3] == [str(number)]), str(number))
