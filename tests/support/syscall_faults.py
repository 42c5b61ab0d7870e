"""Faults in the system calls of a running process, injected by strace: an error or a signal at the n-th call.

The process is the real one, unchanged: Python's calls and SQLite's are hit alike. Calls are counted by strace for each
thread and each call on its own, so `Fault("fsync", "ENOSPC", "3")` is the third fsync of any traced thread. What there
is to hit is listed by `operations` from the log of a run without faults.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# All calls that change what is on the disk, except open: its faults are those of reading, too.
CALLS = (
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "ftruncate", "fallocate"),
    *("fsync", "fdatasync", "sync_file_range", "rename", "renameat", "renameat2", "link", "linkat", "symlink"),
    *("symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
)
EVERY = "1+"  # strace's spelling of each call from the first one on

_TIMEOUT_S = 60.0
_CALL = re.compile(r"^(?:(?P<thread>\d+) +)?(?P<call>\w+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?:(?P<thread>\d+) +)?<\.\.\. (?P<call>\w+) resumed>(?P<rest>.*)$")
_RESULT = re.compile(r"\)\s+= (?P<result>-?\d+|0x[0-9a-f]+|\?)(?: (?P<error>E[A-Z0-9]+))?")


@dataclass(frozen=True)
class Fault:
    """A fault in some calls of each traced thread.

    Attributes:
        calls: Name of the call, or several; each is counted on its own.
        effect: Name of the error that the call returns without being made, such as ENOSPC, or SIGKILL, which ends the
            process before the call is made.
        when: Which calls, as strace spells it: "3", "3+", "3..5", or "3..9+2" for every other one; EVERY for all.
    """

    calls: str | Collection[str]
    effect: str
    when: str = EVERY

    @property
    def is_signal(self) -> bool:
        """Whether the fault ends the process."""
        return self.effect.startswith("SIG")

    @property
    def option(self) -> str:
        """The fault as strace's option -e takes it."""
        kind = "signal" if self.is_signal else "error"
        return f"inject={_set(self.calls)}:{kind}={self.effect}:when={self.when}"


@dataclass(frozen=True)
class Operation:
    """A call that a traced thread made.

    Attributes:
        thread: ID of the thread; None if only one was traced.
        call: Name of the call.
        number: How many calls of this name the thread had made, this one included: what Fault.when counts.
        arguments: Arguments as strace shows them, with the paths of descriptors.
        error: Name of the error that it returned, or None.
        injected: Whether strace returned that error instead of making the call, or the process ended in it.
    """

    thread: int | None
    call: str
    number: int
    arguments: str
    error: str | None
    injected: bool


@functools.cache
def missing() -> str | None:
    """Return why faults cannot be injected here, or None if they can: strace may be absent, or tracing not allowed."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with _strace("-o", "/dev/null", "-p", str(process.pid)) as tracer:
                _await_attached(tracer, 1)
        except OSError as error:
            return str(error)
        finally:
            process.kill()
    return None


@contextlib.contextmanager
def attached(
    threads: int | Collection[int],
    log: Path,
    *faults: Fault,
    calls: Collection[str] = CALLS,
    follow: bool = False,
    bytes_shown: int = 0,
) -> Iterator[None]:
    """Trace threads of a running process, and inject faults, from here to the end of the block.

    Args:
        threads: IDs of the threads, for example `threads_of(pid)`.
        log: File to write what they did to, for `operations`.
        *faults: Faults to inject; of two for the same call, only the last one is.
        calls: Calls to log.
        follow: Whether threads and processes that start meanwhile are traced as well.
        bytes_shown: Bytes of written data that the log shows; if any, all its strings are in hexadecimal.

    Raises:
        OSError: The threads cannot be traced.
    """
    wanted = [threads] if isinstance(threads, int) else list(threads)
    options = [*_options(log, faults, calls, bytes_shown), *(["-f"] if follow else [])]
    with _strace(*options, "-p", ",".join(map(str, wanted))) as tracer:
        _await_attached(tracer, len(wanted))
        yield


def command_prefix(log: Path, *faults: Fault, calls: Collection[str] = CALLS, bytes_shown: int = 0) -> tuple[str, ...]:
    """Return what precedes a command to trace it from its start, with its children.

    The command is the direct child of who starts it, as without the prefix; strace ends with the last traced process.
    """
    # Other calls are not even noticed with a filter, but then strace 6.1 sends no signal.
    signals = any(fault.is_signal for fault in faults)
    filtered = () if signals else ("--seccomp-bpf",)
    return ("strace", "-D", "-f", *filtered, *_options(log, faults, calls, bytes_shown), "--")


def threads_of(pid: int) -> dict[int, str]:
    """Return the threads of a process: ID -> name, the first one first."""
    found = {}
    for folder in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda folder: int(folder.name)):
        with contextlib.suppress(FileNotFoundError):  # it has ended
            found[int(folder.name)] = (folder / "comm").read_text().strip()
    return found


def operations(log: Path) -> list[Operation]:
    """Return the calls in a log, in the order in which they began."""
    counts: dict[tuple[str | None, str], int] = {}
    found: list[tuple[re.Match[str], int, str]] = []
    open_calls: dict[str | None, int] = {}
    for line in log.read_text(errors="replace").splitlines():
        if (call := _CALL.match(line)) is not None:
            key = (call["thread"], call["call"])
            counts[key] = counts.get(key, 0) + 1
            open_calls[call["thread"]] = len(found)
            found.append((call, counts[key], call["rest"]))
        elif (resumed := _RESUMED.match(line)) is not None and resumed["thread"] in open_calls:
            began, number, rest = found[open_calls[resumed["thread"]]]
            text = rest.removesuffix(" <unfinished ...>") + resumed["rest"]
            found[open_calls[resumed["thread"]]] = (began, number, text)
    return [_operation(*each) for each in found]


def _operation(call: re.Match[str], number: int, rest: str) -> Operation:
    ends = list(_RESULT.finditer(rest))
    thread = int(call["thread"]) if call["thread"] else None
    if not ends:  # strace let go of it meanwhile
        return Operation(thread, call["call"], number, rest, None, injected=False)
    injected = rest.endswith("(INJECTED)") or ends[-1]["result"] == "?"
    return Operation(thread, call["call"], number, rest[: ends[-1].start()], ends[-1]["error"], injected)


def _set(calls: str | Collection[str]) -> str:
    """Return calls as strace takes them; a name that this machine's kernel does not have is ignored."""
    return ",".join(f"?{call}" for call in ([calls] if isinstance(calls, str) else calls))


def _options(log: Path, faults: Sequence[Fault], calls: Collection[str], bytes_shown: int) -> list[str]:
    # An injected call is traced in any case. Descriptors with their paths, data without what is not asked for.
    shown = ["-xx"] if bytes_shown else []
    options = ["-y", *shown, "-s", str(bytes_shown), "-o", str(log), "-e", f"trace={_set(calls)}", "-e", "signal=none"]
    return [*options, *(part for fault in faults for part in ("-e", fault.option))]


@contextlib.contextmanager
def _strace(*options: str) -> Iterator[subprocess.Popen[str]]:
    tracer = subprocess.Popen(["strace", *options], stderr=subprocess.PIPE, text=True)
    try:
        yield tracer
    finally:
        tracer.terminate()  # it lets the threads go
        tracer.communicate(timeout=_TIMEOUT_S)


def _await_attached(tracer: subprocess.Popen[str], count: int) -> None:
    """Wait until strace says of each thread that it is attached.

    Raises:
        OSError: It says otherwise.
    """
    assert tracer.stderr is not None
    while count:
        line = tracer.stderr.readline()
        if " attached" not in line:
            raise OSError(f"strace cannot trace: {line.strip() or 'it has ended'}")
        count -= 1
