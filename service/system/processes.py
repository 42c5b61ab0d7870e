"""Environment, lifetime and priority of child processes. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SCHED_IDLE_NICE = 10  # from this niceness on, a child runs only on idle cores
_IOPRIO_WHO_PROCESS, _IOPRIO_IDLE = 1, 3 << 13
_BACKGROUND_NICE = 10  # a tenth of the CPU time of a process with niceness 0
_AUTOGROUP = Path("/proc/self/autogroup")
_OOM_SCORE, _LOADING_OOM_SCORE = Path("/proc/self/oom_score_adj"), 500  # the worker has 1000
# Only the supervisor reports to systemd and owns the sockets that systemd passes.
_SUPERVISOR_ONLY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
FEW_KERNELS = 48  # more than the number of distinct layer shapes in one network
# Some tenths of a millisecond. To wake a thread takes long, above all in a virtual machine, and torch has many short
# steps: a ResNet-18 takes 17 % less time, and as much CPU time.
FEW_SPINS = 100_000
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # number of the system call, for which libc has no wrapper


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def child_environment(
    threads: int | None, base: Mapping[str, str] | None = None, *, kernels: int | None = None, spins: int = 0
) -> dict[str, str]:
    """Return the environment of a child process that runs torch.

    OpenMP reads its settings once, when it is loaded, so they must be in the environment before the child starts.
    Beside a serving generation its threads must not spin while they wait: a worker whose threads did raised the median
    latency from 75 ms to 1.9 s.

    Args:
        threads: Maximum number of threads; None for one per core.
        base: Environment to start from; None for that of this process.
        kernels: Maximum number of compiled kernels in oneDNN's cache, one per shape of a layer; None for its default
            of 1,024. Quantization uses each kernel only for a while, and those of a ResNet-50 take 50 MB.
        spins: Number of times that a waiting thread looks for work before it sleeps, see `FEW_SPINS`.
    """
    environment = dict(os.environ if base is None else base)
    for name in _SUPERVISOR_ONLY:
        environment.pop(name, None)
    count = str(threads or cores())
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    environment["GOMP_SPINCOUNT"] = str(spins)
    if kernels is not None:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(kernels)
    environment["ORT_DISABLE_TELEMETRY"] = "1"  # of ONNX Runtime, which wants to write to the home folder and to send
    environment["PYTHONSAFEPATH"] = "1"  # a torch.py in the current folder must not shadow torch
    return environment


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the process `parent` exits for any reason.

    A child would notice the end of file of a pipe only when it reads; this also kills a child that is stopped or hangs
    in native code.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent exited before the line above
        os._exit(1)


def adopt_orphans() -> None:
    """Make this process, rather than init, the parent of descendants whose parents have exited.

    Raises:
        OSError: A sandbox forbids it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(code)}")


@contextmanager
def preferred_oom_victim() -> Iterator[None]:
    """Make the OOM killer prefer this process to the serving process inside a `with` block.

    Both are about the same size, so that the kernel could choose either. Restoring the score needs no privilege.
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


def at_background_priority(work: Callable[[], T], idle_s: float = 0.0) -> T:
    """Run `work` in a thread of low priority and return its result.

    A separate thread is needed because without privileges a thread cannot raise its priority again. Unlike with idle
    scheduling, the work progresses even if all cores are busy.

    Args:
        work: The work.
        idle_s: Seconds for which it runs only on idle cores. With more than 0, `may_raise_priority` must hold.
    """

    def lower_thread_priority() -> None:
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _BACKGROUND_NICE)
        if idle_s:
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        started.append(thread)

    started: list[int] = []
    with ThreadPoolExecutor(1, initializer=lower_thread_priority) as executor:
        future = executor.submit(work)
        if idle_s and not wait([future], idle_s).done:
            os.sched_setscheduler(started[0] if started else 0, os.SCHED_OTHER, os.sched_param(0))
        return future.result()


def may_raise_priority() -> bool:
    """Return whether threads of this process may undo a lower priority: as root, or with LimitNICE of systemd."""

    def lower_and_raise() -> bool:
        thread = threading.get_native_id()
        before = os.getpriority(os.PRIO_PROCESS, thread)
        try:
            os.setpriority(os.PRIO_PROCESS, thread, before + 1)
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, thread, before)
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(1) as executor:  # its thread ends, whatever its priority is then
        return executor.submit(lower_and_raise).result()


def raise_threads() -> None:
    """Give all threads of this process the priority of the calling thread, see `may_raise_priority`."""
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setscheduler(int(thread.name), os.sched_getscheduler(0), os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)


def leave_to_idle_time(pid: int | None) -> None:
    """Move a child with all its threads to idle scheduling, and make it a preferred OOM victim.

    This cannot be undone without privileges. Settings that the kernel or a sandbox refuses stay unchanged.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_LOADING_OOM_SCORE))
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def lower_priority(nice: int) -> None:
    """Lower the priority of this process: niceness, idle scheduling, idle I/O, and preferred OOM victim.

    Settings that the kernel or a sandbox refuses stay unchanged; the process then competes more with others.

    Args:
        nice: Niceness, from 0 to 19; from 10 on, CPU time and I/O are idle-only.
    """
    with contextlib.suppress(OSError):
        os.nice(nice - os.nice(0))
    if os.getsid(0) == os.getpid():  # the session has no other members
        with contextlib.suppress(OSError):
            # With autogroup scheduling, each session gets the same CPU time, and niceness only counts within a session.
            _AUTOGROUP.write_text(str(nice))
    if nice >= _SCHED_IDLE_NICE:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        if (number := _IOPRIO_SET.get(os.uname().machine)) is not None:
            ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text("1000")


def resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process in bytes, or 0 if it has exited."""
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            return int(psutil.Process(pid).memory_info().rss)
    return 0


def own_bytes(pid: int | None) -> int:
    """Return the resident memory of a process without the pages of files, in bytes, or 0 if it has exited.

    Processes that have the same libraries open share the pages of these.
    """
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            memory = psutil.Process(pid).memory_info()
            return int(memory.rss - memory.shared)
    return 0
