"""Process trees of servers: memory, termination and waiting. Used by benchmarks.serving."""

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
    """Return the first result of `look` that is true.

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
    """Return the memory of a process and all its descendants in bytes.

    Shared pages count once (PSS), so the sum is the memory that would be freed with their exit. Requires Linux.
    """
    total = 0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def resting_bytes(pid: int, processes: int | None = None) -> int:
    """Return `tree_bytes` once the process has this number of descendants, or immediately for None."""
    if processes is not None:
        parent = psutil.Process(pid)
        eventually(lambda: len(parent.children(recursive=True)) == processes, f"{processes} children")
    return tree_bytes(pid)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Terminate a session leader, then kill the remaining children."""
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
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
