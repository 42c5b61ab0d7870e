"""Measure the start of generations: forked, forked with ONNX Runtime imported, too, and as a new Python.

The ways take turns, so that other work of the machine affects all of them. Memory is that of several generations at
once and of the process that they are forked from: shared pages count once, and those of files do not count.

Usage: python -m benchmarks.starts [--artifact DIR] [--turns 10] [--models 4]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.options import parser_of
from benchmarks.serving.daemon import PREPARES, Edged
from benchmarks.serving.processes import own_bytes_of
from service.ipc import frames
from service.ipc.shared_memory import BodyMemory
from service.system.processes import child_environment

READY_S = 60
RUN = "import sys; from service.inference.main import main; sys.exit(main(sys.argv[1:]))"
WAYS: dict[str, tuple[str, ...] | None] = {  # what is imported before the fork; None for a new Python
    "forked": ("service.inference.main",),
    "forked, with ONNX Runtime": ("service.inference.main", "onnxruntime"),
    "new Python": None,
}


@dataclass
class Started:
    """A generation that is ready.

    Attributes:
        pid: Its process id.
        connection: The supervisor's end of its socket; it exits once this is closed.
        seconds: Seconds from the request to its report that it is ready.
        cpu_s: CPU seconds that it took for that.
    """

    pid: int
    connection: socket.socket
    seconds: float
    cpu_s: float


@dataclass
class Found:
    """Measurements of one way.

    Attributes:
        seconds: Seconds of each start.
        cpu_s: CPU seconds of each start.
        own: `own_bytes_of` the generations and the process that they are forked from, in each turn.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    own: list[int] = field(default_factory=list)


def main() -> None:
    """Measure and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--artifact", type=Path, help="artifact to load (a CIFAR ResNet-20)")
    parser.add_argument("--turns", type=int, default=10, help="turns of each way (10)")
    parser.add_argument("--models", type=int, default=4, help="generations at once (4)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        artifact = options.artifact or stack.enter_context(small_artifact())
        show(measure(artifact, options))


@contextlib.contextmanager
def small_artifact() -> Iterator[Path]:
    """Have a daemon publish a small network and yield its artifact."""
    with tempfile.TemporaryDirectory(prefix="edged-starts-") as folder:
        with Edged(Path(folder), worker=PREPARES) as edged:
            edged.put_live()
            artifact = edged.artifact()
        yield artifact


def measure(artifact: Path, options: argparse.Namespace) -> dict[str, Found]:
    """Start generations in all ways in turn; the first turn warms up."""
    found = {way: Found() for way in WAYS}
    with contextlib.ExitStack() as stack:
        forkers = {way: stack.enter_context(forker(modules)) for way, modules in WAYS.items() if modules is not None}
        for turn in range(options.turns + 1):
            for way, result in found.items():
                started = [start(artifact, forkers.get(way)) for _ in range(options.models)]
                pids = [each.pid for each in started] + [forkers[way][0] for _ in range(way in forkers)]
                own = own_bytes_of(pids)
                for each in started:
                    each.connection.close()
                    with contextlib.suppress(psutil.Error):
                        psutil.Process(each.pid).wait(READY_S)
                if turn:
                    result.seconds += [each.seconds for each in started]
                    result.cpu_s += [each.cpu_s for each in started]
                    result.own.append(own)
    return found


@contextlib.contextmanager
def forker(modules: tuple[str, ...]) -> Iterator[tuple[int, socket.socket]]:
    """Yield the id of a process that has imported `modules` and forks, and the socket for requests to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "benchmarks.serving.forker", str(theirs.fileno()), *modules]
    with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()], env=child_environment(1)) as process:
        theirs.close()
        ours.recv(1)  # it has imported them
        try:
            yield process.pid, ours
        finally:
            ours.close()


def start(artifact: Path, fork: tuple[int, socket.socket] | None) -> Started:
    """Start a generation, forked or as a new Python, and wait until it is ready."""
    began = time.monotonic()
    ours, theirs = socket.socketpair()
    arguments = ["--artifact", str(artifact), "--model", "net", "--generation", "1", "--threads", "1"]
    BodyMemory().send_to(ours)
    with theirs:
        if fork is not None:
            socket.send_fds(fork[1], [json.dumps(arguments).encode()], [theirs.fileno()])
            pid = int(fork[1].recv(100))
        else:
            own = ["--parent", str(os.getpid()), "--socket-fd", str(theirs.fileno())]
            command = [sys.executable, "-c", RUN, *arguments, *own]
            pid = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=child_environment(1)).pid
    ours.settimeout(READY_S)
    with ours.makefile("rb") as stream:
        frame = frames.read_blocking(stream)
    if frame is None or frame[0]["kind"] != "ready":
        raise RuntimeError(f"a generation did not start: {frame}")
    used = psutil.Process(pid).cpu_times()
    return Started(pid, ours, time.monotonic() - began, used.user + used.system)


def show(found: dict[str, Found]) -> None:
    """Print a line for each way."""
    print(f"{'':28}{'start s':>10}{'worst':>8}{'CPU s':>8}{'own MiB':>10}")
    for way, result in found.items():
        median, cpu, own = map(statistics.median, (result.seconds, result.cpu_s, result.own))
        print(f"{way:28}{median:10.3f}{max(result.seconds):8.2f}{cpu:8.2f}{own / 2**20:10.1f}")


if __name__ == "__main__":
    main()
