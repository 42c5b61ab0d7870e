"""The name of this process in ps and top. Imports nothing large."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

_PR_SET_NAME = 15
_ARG_START, _ARG_END = 48 - 3, 49 - 3  # fields of proc(5), numbered from the third, the first one after the name


def set_name(name: str) -> None:
    """Set the name that top shows; it is cut off after 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def set_title(words: Sequence[str]) -> None:
    """Set the command line that ps shows (/proc/PID/cmdline), one word per argument.

    The title overwrites the original arguments in memory, of which Python has a copy. A title that is longer than
    those arguments is cut off.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, room = int(fields[_ARG_START]), int(fields[_ARG_END]) - int(fields[_ARG_START])
    if room > 0:  # a sandbox may hide the addresses
        title = "\0".join(words).encode()[: room - 1]
        ctypes.memmove(start, title.ljust(room, b"\0"), room)
