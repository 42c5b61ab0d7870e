"""What ps and top call this process. Imports nothing that is large."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

_PR_SET_NAME = 15
_ARG_START, _ARG_END = 48 - 3, 49 - 3  # of proc(5), of which the third is the first after the name


def set_name(name: str) -> None:
    """Set what top shows, at most 15 bytes of it."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def set_title(words: Sequence[str]) -> None:
    """Set what ps shows: /proc/PID/cmdline, a word an argument.

    It is written where the arguments of this process lie, which Python has copied, so there is as much room as those
    took; what is longer is cut off.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, room = int(fields[_ARG_START]), int(fields[_ARG_END]) - int(fields[_ARG_START])
    if room > 0:  # a sandbox may hide it
        title = "\0".join(words).encode()[: room - 1]
        ctypes.memmove(start, title.ljust(room, b"\0"), room)
