"""Servers as process trees: their memory, their end, and waiting for them. Used by benchmarks.serving."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")

TIMEOUT_S = 300.0
_END_S = 30


def eventually(look: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S) -> T:
    """The first result of `look` that is true.

    Raises:
        TimeoutError: There is none in time.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if result := look():
            return result
        time.sleep(0.02)
    raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")


def tree_bytes(pid: int) -> int:
    """Memory of a process and all its descendants.

    Pages that several of them share count once (PSS), so the sum is what would come back with their end. Only Linux
    tells it.
    """
    total = 0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def resting_bytes(pid: int, processes: int | None = None) -> int:
    """`tree_bytes` once the tree has as many processes as it has at rest; None if that is not known."""
    if processes is not None:
        parent = psutil.Process(pid)
        eventually(lambda: len(parent.children(recursive=True)) == processes, f"{processes} children")
    return tree_bytes(pid)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to a process that leads a session; what is left of its children after that gets SIGKILL."""
    children = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
