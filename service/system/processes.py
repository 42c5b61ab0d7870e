"""What all child processes have in common. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SCHED_IDLE_NICE = 10  # from this niceness on, a child only gets time that nobody else wants
_IOPRIO_WHO_PROCESS, _IOPRIO_IDLE = 1, 3 << 13
_BESIDE_NICE = 10  # a tenth of the time that others get
_AUTOGROUP = Path("/proc/self/autogroup")
_OOM_SCORE, _LOADING_OOM_SCORE = Path("/proc/self/oom_score_adj"), 500  # the worker has 1000
# systemd hears from the supervisor alone, and gave its sockets to nobody else.
_SUPERVISOR_ONLY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
FEW_KERNELS = 48  # more than one network's layers have shapes
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # number of the system call, which libc does not wrap


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def child_environment(
    threads: int | None, base: Mapping[str, str] | None = None, *, kernels: int | None = None
) -> dict[str, str]:
    """The environment of a child that computes.

    OpenMP reads its settings once, when it is loaded, so they must be in the environment before the child starts.
    Its threads must not spin while they wait: a worker beside a serving generation turned a median of 75 ms into 1.9 s.

    Args:
        threads: Most threads; None for one a core.
        base: Environment to start from; None for our own.
        kernels: Most kernels that oneDNN keeps of those it compiles, one a layer's shape; None for its own 1,024.
            Quantization needs each for a while and never again, and they are 50 MB for a ResNet-50.
    """
    environment = dict(os.environ if base is None else base)
    for name in _SUPERVISOR_ONLY:
        environment.pop(name, None)
    count = str(threads or cores())
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    if kernels is not None:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(kernels)
    environment["PYTHONSAFEPATH"] = "1"  # a torch.py in the current folder is not the torch that is meant
    return environment


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the process `parent` ends, however it ends.

    A pipe's end of file would be seen only by a child that gets round to reading; this also ends one that is stopped
    or hangs in native code.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def adopt_orphans() -> None:
    """Have descendants whose parents have ended become children of this process, rather than of init.

    Raises:
        OSError: A sandbox does not allow it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(code)}")


@contextmanager
def preferred_oom_victim() -> Iterator[None]:
    """While entered, a kernel that is out of memory ends this process rather than the one that serves.

    Both are as large as each other, and of two that are the kernel may take either. The way back needs no privilege.
    """
    before = None
    with contextlib.suppress(OSError, ValueError):
        before = int(_OOM_SCORE.read_text())
        _OOM_SCORE.write_text(str(max(before, _LOADING_OOM_SCORE)))
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                _OOM_SCORE.write_text(str(before))


def at_background_priority(work: Callable[[], T]) -> T:
    """What `work` returns, done in a thread that gives way to processes which have more to do with the moment.

    A thread, because what takes a lower priority may not come back to the one before. It still makes progress where all
    cores are busy, unlike in idle time.
    """

    def give_way() -> None:
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _BESIDE_NICE)

    with ThreadPoolExecutor(1, initializer=give_way) as executor:
        return executor.submit(work).result()


def leave_to_idle_time(pid: int | None) -> None:
    """Give a child, with all its threads, only time that nobody else wants, and memory likewise.

    There is no way back without privileges. What the kernel or a sandbox refuses is left as it is.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_LOADING_OOM_SCORE))
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def lower_priority(nice: int) -> None:
    """Give way to everything else: niceness, idle scheduling, idle I/O, and first in line for the OOM killer.

    What the kernel or a sandbox refuses is left as it is: the work is then merely less polite.
    """
    with contextlib.suppress(OSError):
        os.nice(nice - os.nice(0))
    if os.getsid(0) == os.getpid():  # nobody else is in it
        with contextlib.suppress(OSError):
            # Where the kernel gives each session the same time, all else that is said here only counts within this one.
            _AUTOGROUP.write_text(str(nice))
    if nice >= _SCHED_IDLE_NICE:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        if (number := _IOPRIO_SET.get(os.uname().machine)) is not None:
            ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text("1000")


def resident_bytes(pid: int | None) -> int:
    """Resident memory of a process, 0 if it is gone."""
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            return int(psutil.Process(pid).memory_info().rss)
    return 0
