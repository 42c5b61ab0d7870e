"""Processes that the kernel has killed for lack of memory, as far as its counters can be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.system.free_memory import own_groups

_KEY = "oom_kill"


@dataclass(frozen=True)
class OomKills:
    """Counts since boot, or since the control group was made; None where a counter cannot be read.

    Attributes:
        group: Processes of the control group of this process.
        machine: Processes of the whole machine.
    """

    group: int | None
    machine: int | None

    @classmethod
    def read(cls, root: Path = Path("/")) -> OomKills:
        """Read the counters.

        Args:
            root: Folder that contains /sys and /proc.
        """
        of_groups = [_count(group / layout.kills) for layout, group in own_groups(root)]
        readable = [count for count in of_groups if count is not None]
        return cls(max(readable, default=None), _count(root / "proc/vmstat"))

    @property
    def cause(self) -> str:
        """What these kills say about a process that was ended by a SIGKILL which edged did not send."""
        if self.group:
            return "the kernel killed it for lack of memory, as the count of its control group says"
        if self.group is None and self.machine:
            text = f"the kernel killed {self.machine} process(es) of this machine for lack of memory meanwhile"
            return f"{text}, and no count of its control group says whether it was one of them"
        if self.group is None and self.machine is None:
            return "the cause is unknown: the kernel's counts of kills for lack of memory cannot be read"
        return "another program or a user sent the signal: the kernel counts no kill for lack of memory meanwhile"

    @property
    def may_be_memory(self) -> bool:
        """Whether the kernel may have killed a process of this control group for lack of memory."""
        return bool(self.group) or (self.group is None and bool(self.machine))

    def since(self, before: OomKills) -> OomKills:
        """Return what was added to the counters since `before`."""
        return OomKills(_difference(before.group, self.group), _difference(before.machine, self.machine))


def _count(path: Path) -> int | None:
    """Return the value of `oom_kill` in a file of keys and values; None if it has none."""
    return next(_values(path), None)


def _values(path: Path) -> Iterator[int]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        key, _, value = line.partition(" ")
        if key == _KEY and value.strip().isdecimal():
            yield int(value)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)
