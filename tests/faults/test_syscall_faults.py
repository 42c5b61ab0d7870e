"""strace injects the faults that were asked for, where they were asked for, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.syscall_faults import EVERY, Fault, attached, command_prefix, missing, operations, threads_of

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# Writes and syncs a file three times in a second thread, once it is asked to, and reports what failed.
WRITER = """
import os, sys, threading
failed = ""
def write():
    global failed
    sys.stdin.readline()
    for n in range(3):
        with open(f"{sys.argv[1]}/new", "w") as file:
            try:
                file.write("content")
                file.flush()
                os.fsync(file.fileno())
                os.rename(f"{sys.argv[1]}/new", f"{sys.argv[1]}/{n}")
            except OSError as error:
                failed += f"{n} {error.strerror}\\n"
thread = threading.Thread(target=write)
thread.start()
print("ready", flush=True)
thread.join()
print(failed, end="")
"""


def writer(folder: Path, *prefix: str) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-c", WRITER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def seen(log: Path) -> list[tuple[str, int, str | None]]:
    return [(each.call, each.number, each.error) for each in operations(log) if "pipe:" not in each.arguments]


def test_an_error_at_the_nth_call_of_a_running_process(tmp_path: Path) -> None:
    process, log = writer(tmp_path), tmp_path / "log"
    with attached(threads_of(process.pid), log, Fault("fsync", "ENOSPC", "2"), Fault(("rename", "link"), "EROFS", "2")):
        output, _ = process.communicate("go\n")
    assert output == "1 No space left on device\n2 Read-only file system\n"
    assert process.returncode == 0
    assert seen(log) == [
        *(("write", 1, None), ("fsync", 1, None), ("rename", 1, None)),
        *(("write", 2, None), ("fsync", 2, "ENOSPC")),
        *(("write", 3, None), ("fsync", 3, None), ("rename", 2, "EROFS")),
    ]
    assert [each.number for each in operations(log) if each.injected] == [2, 2]
    assert f"{tmp_path}/0" in operations(log)[2].arguments


def test_a_kill_at_the_nth_call_from_the_start_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = writer(tmp_path, *command_prefix(log, Fault("rename", "SIGKILL", "2")))
    process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "log", "new"]  # the second was not made
    assert [(each.call, each.number) for each in operations(log) if each.injected] == [("rename", 2)]


def test_each_call_and_none_after_the_end_of_the_block(tmp_path: Path) -> None:
    process = writer(tmp_path)
    with attached(threads_of(process.pid), tmp_path / "log", Fault("fsync", "EIO", EVERY)):
        pass
    assert process.communicate("go\n") == ("", None)
    process = writer(tmp_path)
    with attached(threads_of(process.pid), tmp_path / "log", Fault("fsync", "EIO", EVERY)):
        output, _ = process.communicate("go\n")
    assert output == "".join(f"{n} Input/output error\n" for n in range(3))


def test_a_process_that_has_ended_cannot_be_traced(tmp_path: Path) -> None:
    process = writer(tmp_path)
    process.communicate("go\n")
    with (
        pytest.raises(OSError, match="No such process"),
        attached(process.pid, tmp_path / "log"),
    ):
        pass


def test_errors_from_the_start_on(tmp_path: Path) -> None:
    process = writer(tmp_path, *command_prefix(tmp_path / "log", Fault("rename", "EDQUOT", "2+")))
    assert process.communicate("go\n") == ("1 Disk quota exceeded\n2 Disk quota exceeded\n", None)
    assert process.returncode == 0
