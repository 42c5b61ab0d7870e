"""Ways in which a state folder is taken away from a running daemon, and comes back as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.daemon import TIMEOUT_S

Loss = Callable[[Path, Path], AbstractContextManager[None]]


@contextlib.contextmanager
def moved(state: Path, away: Path) -> Iterator[None]:
    """Rename the folder during the block."""
    state.rename(away)
    yield
    away.rename(state)


@contextlib.contextmanager
def replaced(state: Path, away: Path) -> Iterator[None]:
    """Put an empty folder in its place during the block."""
    state.rename(away)
    state.mkdir()
    yield
    state.rmdir()
    away.rename(state)


@contextlib.contextmanager
def emptied(state: Path, away: Path) -> Iterator[None]:
    """Move all that it holds somewhere else during the block."""
    away.mkdir()
    for path in state.iterdir():
        path.rename(away / path.name)
    yield
    for path in away.iterdir():
        path.rename(state / path.name)
    away.rmdir()


@contextlib.contextmanager
def read_only(state: Path, _: Path) -> Iterator[None]:
    """Let nothing be created, renamed or opened for writing in it during the block; needs the right to mount.

    What is open already can be written to: the kernel remounts no filesystem of which a file is open for writing, so
    this mounts the folder over itself.
    """
    subprocess.run(["mount", "--bind", state, state], check=True)
    try:
        _remount_read_only(state)
        yield
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


def _remount_read_only(state: Path) -> None:
    """Make a mount read-only, once nothing is being written in it: an update may still be writing its report."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        done = subprocess.run(["mount", "-o", "remount,bind,ro", state], capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert "busy" in done.stderr, done.stderr
        assert time.monotonic() < deadline, done.stderr


# By what is done to the folder: the context in which that lasts, given the folder and a path that is not in use.
LOSSES: Mapping[str, Loss] = {"moved": moved, "replaced": replaced, "emptied": emptied, "read_only": read_only}


def has_content(state: Path) -> bool:
    """Return whether anything is in a folder that can be written to."""
    writable = state.exists() and not os.statvfs(state).f_flag & os.ST_RDONLY
    return writable and any(state.iterdir())
