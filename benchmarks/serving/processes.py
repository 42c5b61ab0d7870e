"""Process trees of servers: memory, termination, waiting and repeating. Used by benchmarks.serving."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
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


@contextlib.contextmanager
def repeating(act: Callable[[], object], pause_s: float = 0.0) -> Iterator[None]:
    """Call a function again and again in another thread during the block, at least once.

    Args:
        act: Function to call.
        pause_s: Pause between two calls, in seconds.
    """
    over = threading.Event()

    def repeat() -> None:
        while True:
            act()
            if over.wait(pause_s):
                return

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tree_bytes(pid: int) -> int:
    """Return the memory of a process and all its descendants in bytes.

    Shared pages count once (PSS), so the sum is the memory that would be freed with their exit. Pages of files count
    less while other programs have the same files open. Requires Linux.
    """
    return _sum(_tree(pid), ("Pss",))


def own_bytes(pid: int, processes: int | None = None) -> int:
    """Return the memory of a process and all its descendants that is not that of files, in bytes.

    Pages that they share count once. No other program changes this figure, and the kernel can take none of this memory
    back, so a leak shows here. Requires Linux.

    Args:
        pid: Process id.
        processes: Wait until there are so many descendants; None not to wait.
    """
    if processes is not None:
        parent = psutil.Process(pid)
        eventually(lambda: len(parent.children(recursive=True)) == processes, f"{processes} children")
    return own_bytes_of(_tree(pid))


def own_bytes_of(pids: Iterable[int]) -> int:
    """Return the memory of processes that is not that of files, in bytes; see `own_bytes`."""
    return _sum(pids, ("Pss_Anon", "Pss_Shmem"))


def _tree(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _sum(pids: Iterable[int], fields: tuple[str, ...]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            kibibytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
            total += sum(kibibytes[field] for field in fields) << 10
    return total


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
