"""Memory that this process and its children can still have: the machine's, or what their control groups leave of it.

A unit with MemoryMax=, or a container, is killed for lack of memory while the machine has plenty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class _Layout:
    """Where a version of control groups keeps its figures.

    Attributes:
        mount: Below the root of the filesystem.
        limits: Files that hold the most there may be; "max" or a huge number for no limit.
        usage: File that holds what is in use, files in the page cache included.
        cold: Line of memory.stat with the files in it that nobody used lately: they make room when it is needed.
    """

    mount: str
    limits: tuple[str, ...]
    usage: str
    cold: str


_VERSION_1 = _Layout("sys/fs/cgroup/memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
# Beyond memory.high the kernel slows a group down until it hardly moves.
_VERSION_2 = _Layout("sys/fs/cgroup", ("memory.max", "memory.high"), "memory.current", "inactive_file")


def available_bytes(root: Path = Path("/")) -> int:
    """What can be had without swapping and without being killed.

    Args:
        root: Where /sys and /proc lie; a test brings its own.
    """
    machine, left = int(psutil.virtual_memory().available), left_in_groups(root)
    return machine if left is None else min(machine, left)


def left_in_groups(root: Path = Path("/")) -> int | None:
    """What the control groups of this process leave, whatever the machine has; None without any limit.

    Args:
        root: Where /sys and /proc lie; a test brings its own.
    """
    return min(_left_in_groups(root), default=None)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left in each control group with a limit, from that of this process up to the root."""
    for layout, name in _own_groups(root):
        mount = root / layout.mount
        group = mount / name
        # In a container without a namespace of its own, its group is what is mounted, under another name.
        group = group if group.is_dir() else mount
        while True:
            yield from _left_in(group, layout)
            if group == mount:
                break
            group = group.parent


def _own_groups(root: Path) -> Iterator[tuple[_Layout, str]]:
    """By the lines of /proc/self/cgroup: number:controllers:path; without controllers it is version 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield _VERSION_1, path.strip("/")
        elif not controllers:
            yield _VERSION_2, path.strip("/")


def _left_in(group: Path, layout: _Layout) -> Iterator[int]:
    usage = _read(group / layout.usage).strip()
    if not usage.isdecimal():  # the root of version 2 has no such file
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
