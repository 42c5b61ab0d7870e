"""Memory available to this process and its children: that of the machine, limited by their control groups.

A unit with MemoryMax=, or a container, can run out of memory while the machine has plenty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Layout:
    """Names of the files of one version of control groups.

    Attributes:
        mount: Mount point, relative to the root of the filesystem.
        limits: Files with the limits in bytes; "max" or a huge number means no limit.
        usage: File with the bytes in use, including the page cache.
        cold: Key in memory.stat of the inactive part of the page cache, which the kernel reclaims on demand.
        kills: File with the count `oom_kill` of processes that the kernel has killed for lack of memory.
    """

    mount: str
    limits: tuple[str, ...]
    usage: str
    cold: str
    kills: str


_VERSION_1 = Layout(
    "sys/fs/cgroup/memory",
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    "total_inactive_file",
    "memory.oom_control",
)
# Above memory.high the kernel throttles a group until it makes almost no progress.
_VERSION_2 = Layout("sys/fs/cgroup", ("memory.max", "memory.high"), "memory.current", "inactive_file", "memory.events")


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be allocated without swapping and without exceeding a limit of a control group.

    Args:
        root: Folder that contains /sys and /proc.
    """
    machine, left = int(psutil.virtual_memory().available), left_in_groups(root)
    return machine if left is None else min(machine, left)


def left_in_groups(root: Path = Path("/")) -> int | None:
    """Return the bytes that the control groups of this process leave, or None without a limit.

    The memory of the machine is not considered.

    Args:
        root: Folder that contains /sys and /proc.
    """
    return min(_left_in_groups(root), default=None)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield the bytes left under each limit, from the control group of this process up to the root group."""
    for layout, group in own_groups(root):
        mount = root / layout.mount
        while True:
            yield from _left_in(group, layout)
            if group == mount:
                break
            group = group.parent


def own_groups(root: Path = Path("/")) -> Iterator[tuple[Layout, Path]]:
    """Yield the layout and folder of each memory control group of this process.

    Args:
        root: Folder that contains /sys and /proc.
    """
    for layout, name in _named_groups(root):
        mount = root / layout.mount
        group = mount / name
        # In a container without its own cgroup namespace, the mount point itself is the group, under another name.
        yield layout, group if group.is_dir() else mount


def _named_groups(root: Path) -> Iterator[tuple[Layout, str]]:
    """Yield the layout and path of each group in /proc/self/cgroup.

    Each line reads number:controllers:path; a line without controllers is of version 2.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield _VERSION_1, path.strip("/")
        elif not controllers:
            yield _VERSION_2, path.strip("/")


def _left_in(group: Path, layout: Layout) -> Iterator[int]:
    usage = _read(group / layout.usage).strip()
    if not usage.isdecimal():  # the root group of version 2 has no such file
        return
    lines = (line.split() for line in _read(group / "memory.stat").splitlines())
    cold = next((int(words[1]) for words in lines if words[:1] == [layout.cold]), 0)
    for name in layout.limits:
        limit = _read(group / name).strip()
        if limit.isdecimal():
            yield max(0, int(limit) - int(usage) + cold)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
