from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from benchmarks.serving.processes import eventually, own_bytes, repeating, tree_bytes

HOLDS = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sum(pages[::4096])
print(flush=True)
sys.stdin.readline()
kept = bytearray(b"x") * (20 << 20)
print(flush=True)
sys.stdin.readline()
"""


def test_own_memory_counts_what_was_allocated_and_no_pages_of_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(30 << 20))
    command = [sys.executable, "-c", HOLDS, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before, whole = own_bytes(process.pid), tree_bytes(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = own_bytes(process.pid)
        process.communicate(b"\n")
    assert whole - before >= 30 << 20
    assert 20 << 20 <= after - before <= 21 << 20


def test_own_memory_of_a_process_that_ended_is_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.readline()"], stdin=subprocess.PIPE) as process:
        assert own_bytes(process.pid, processes=0) > 0
        process.communicate(b"\n")


def test_a_function_is_repeated_during_the_block_and_at_least_once() -> None:
    calls: list[str] = []
    with repeating(lambda: calls.append(threading.current_thread().name)):
        eventually(lambda: len(calls) > 2, "three calls")
    count = len(calls)
    assert threading.current_thread().name not in calls
    with repeating(lambda: calls.append("once"), pause_s=3600):
        pass
    assert calls[count:] == ["once"]
