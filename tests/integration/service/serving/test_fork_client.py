"""Generations forked from a process that has imported everything. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from service.ipc.shared_memory import BodyMemory
from service.serving.fork_client import ForkError, ForkServer
from service.serving.forked_process import Forked
from service.serving.generation import Generation
from service.serving.limits import GenerationOptions
from tests.support.artifacts import write_untrained

TIMEOUT_S = 60.0
PARENT = """
import asyncio, socket, sys
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation
from service.serving.limits import GenerationOptions
from pathlib import Path

async def main():
    fork_server = ForkServer()
    generation = Generation("digits", 1, Path(sys.argv[1]), fork_server, GenerationOptions(threads=1))
    await generation.start(60)
    print(fork_server.pid, generation.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "1"
    write_untrained(folder)
    return folder


@pytest.fixture
def never_loaded(tmp_path: Path) -> Path:
    """An artifact that a generation never has done with reading: nobody writes to its manifest."""
    os.mkfifo(tmp_path / "manifest.json")
    return tmp_path


def run(test: Callable[[ForkServer], Awaitable[None]]) -> None:
    async def main() -> None:
        gc.collect()  # what earlier tests left may hold files
        before = psutil.Process().children(), psutil.Process().num_fds()
        async with ForkServer() as fork_server:
            await asyncio.wait_for(test(fork_server), 120)
        assert (psutil.Process().children(), psutil.Process().num_fds()) == before

    asyncio.run(main())


def arguments(artifact: Path) -> list[str]:
    named = ["--generation", "3", "--model", "digits", "--artifact", str(artifact)]
    return [*named, "--parent", str(os.getpid()), "--threads", "1"]


def send_memory(connection: socket.socket) -> None:
    """Send what a generation waits for before it loads."""
    memory = BodyMemory()
    memory.send_to(connection).close()
    memory.close()


async def forked(fork_server: ForkServer, artifact: Path, *more: str, timeout_s: float = TIMEOUT_S) -> Forked:
    """A generation that nobody asks anything: its socket is closed here, which it sees once it has loaded."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_memory(ours)
        return await fork_server.fork([*arguments(artifact), *more], theirs, timeout_s)


def opened(pid: int) -> list[str]:
    """Kinds of files that a process has open, besides the shared memory."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(path.readlink()))
    return sorted(each.partition(":")[0] for each in found if not each.startswith("/memfd:"))


async def begun(fork_server: ForkServer, artifact: Path) -> psutil.Process:
    """The fork server, after it has forked once and closed everything that belonged to that."""
    first = await forked(fork_server, artifact)
    await first.wait()
    await first.stderr.read()  # to its end, which the fork server's copy would keep away
    return psutil.Process(fork_server.pid)


async def until(look: Callable[[], object]) -> None:
    while not look():
        await asyncio.sleep(0.01)


def test_it_is_a_child_of_ours_with_nothing_but_its_own(never_loaded: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        before = fork_server.pid
        assert before is None  # nobody has needed one
        generation = await forked(fork_server, never_loaded)
        process = psutil.Process(generation.pid)
        await until(lambda: process.name() == "edged-gen" and "digits" in process.cmdline())
        assert process.cmdline()[:5] == ["service.inference.main", "--generation", "3", "--model", "digits"]
        assert (process.ppid(), os.getpgid(process.pid)) == (os.getpid(), process.pid)
        assert process.environ()["OMP_WAIT_POLICY"] == "PASSIVE"
        # Once it has read what else it opens for a moment.
        await until(lambda: opened(process.pid) == ["/dev/null", "/dev/null", "pipe", "socket"])
        assert fork_server.pid is not None
        assert psutil.Process(fork_server.pid).num_threads() == 1
        assert psutil.pid_exists(generation.pid)
        generation.kill()
        assert await generation.wait() == generation.returncode == -signal.SIGKILL

    run(test)


def test_how_it_ends_and_what_it_says_are_told(tmp_path: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        unknown = await forked(fork_server, tmp_path, "--nonsense")
        said = (await unknown.stderr.read()).decode()
        assert "service.inference.main: error: unrecognized arguments: --nonsense" in said
        assert await unknown.wait() == 1
        ours, theirs = socket.socketpair()
        with ours:
            send_memory(ours)
            with theirs:
                missing = await fork_server.fork(arguments(tmp_path / "none"), theirs, TIMEOUT_S)
            assert await missing.wait() == 3  # of an artifact that cannot be read
            assert b"is not an artifact" in ours.recv(1 << 16)
        assert await missing.stderr.read() == b""

    run(test)


@pytest.mark.parametrize("threads", [1, 3])
def test_it_computes_with_as_many_threads_as_it_is_told(artifact: Path, threads: int) -> None:
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.25] * 192}]}

    async def test(fork_server: ForkServer) -> None:
        generation = Generation("digits", 1, artifact, fork_server, GenerationOptions(threads=threads))
        await generation.start(TIMEOUT_S)
        try:
            assert (await generation.infer(json.dumps(body).encode(), TIMEOUT_S)).status == 200
            process = psutil.Process(generation.pid)
            computing = [thread for thread in process.threads() if thread.user_time + thread.system_time > 0]
            assert threads <= process.num_threads() <= threads + 1  # one that ONNX Runtime starts and that sleeps
            assert len(computing) <= threads
        finally:
            await generation.stop()

    run(test)


def test_a_generation_outlives_what_it_was_forked_from(never_loaded: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        first = await forked(fork_server, never_loaded)
        killed = fork_server.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await until(lambda: fork_server.pid is None)
        second = await forked(fork_server, never_loaded)
        assert fork_server.pid not in (None, killed)
        assert [generation.returncode for generation in (first, second)] == [None, None]
        for generation in (first, second):
            generation.kill()
            await generation.wait()

    run(test)


def test_those_who_asked_one_that_was_killed_get_theirs_from_another(never_loaded: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        asked = [asyncio.create_task(forked(fork_server, never_loaded)) for _ in range(2)]
        await until(lambda: fork_server.pid is not None)
        await asyncio.sleep(0)  # it has been asked, and still imports
        killed = fork_server.pid
        os.kill(killed or 0, signal.SIGKILL)
        for generation in await asyncio.gather(*asked):
            generation.kill()
            await generation.wait()
        assert fork_server.pid not in (None, killed)

    run(test)


def test_one_that_is_killed_again_and_again_is_told_of(never_loaded: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        asked = asyncio.create_task(forked(fork_server, never_loaded))
        killed: set[int | None] = {None}
        for _ in range(2):
            await until(lambda: fork_server.pid not in killed)
            os.kill(fork_server.pid or 0, signal.SIGKILL)
            killed.add(fork_server.pid)
        with pytest.raises(ForkError, match=r"are forked from ended: killed by signal 9 \(Killed\)"):
            await asked
        generation = await forked(fork_server, never_loaded)
        generation.kill()
        await generation.wait()

    run(test)


@pytest.mark.parametrize("name", ["memfd_create", "pidfd_open"])
def test_a_python_without_what_it_takes(never_loaded: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def test(fork_server: ForkServer) -> None:
        connection, other = socket.socketpair()
        monkeypatch.delattr(os, name)
        with connection, other, pytest.raises(ForkError, match=rf"built without os\.{name}; run edged with the system"):
            await fork_server.fork(arguments(never_loaded), connection, TIMEOUT_S)
        monkeypatch.undo()
        assert fork_server.pid is None

    run(test)


def test_if_it_hangs_the_next_request_has_another_one(never_loaded: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        first = await forked(fork_server, never_loaded)
        hung = fork_server.pid
        os.kill(hung or 0, signal.SIGSTOP)
        with pytest.raises(asyncio.TimeoutError):
            await forked(fork_server, never_loaded, timeout_s=0.1)
        second = await forked(fork_server, never_loaded)
        assert fork_server.pid != hung
        for generation in (first, second):
            generation.kill()
            await generation.wait()

    run(test)


def test_what_nobody_waits_for_any_more_is_ended(never_loaded: Path) -> None:
    server: int | None = None

    def generations() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.pid != server]

    async def test(fork_server: ForkServer) -> None:
        nonlocal server
        (await forked(fork_server, never_loaded)).kill()
        server = fork_server.pid
        await until(lambda: not generations())
        os.kill(server or 0, signal.SIGSTOP)
        asked = asyncio.create_task(forked(fork_server, never_loaded))
        await asyncio.sleep(0.05)  # it has been sent by now; if it has not, the test merely shows less
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        os.kill(server or 0, signal.SIGCONT)
        last = await forked(fork_server, never_loaded)  # answered after the one before
        await until(lambda: [child.pid for child in generations()] == [last.pid])
        last.kill()
        await last.wait()

    run(test)


def test_nothing_is_left_of_many(tmp_path: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        server = await begun(fork_server, tmp_path / "none")
        before = server.num_fds(), psutil.Process().num_fds()
        for generation in await asyncio.gather(*(forked(fork_server, tmp_path / "none") for _ in range(5))):
            assert await generation.wait() > 0
            await generation.stderr.read()
        assert (server.num_fds(), psutil.Process().num_fds()) == before
        assert server.children() == []

    run(test)


def test_without_descriptors_it_says_so_and_goes_on(never_loaded: Path, tmp_path: Path) -> None:
    async def test(fork_server: ForkServer) -> None:
        server = await begun(fork_server, tmp_path / "none")
        quiet = server.num_fds()
        limits = server.rlimit(psutil.RLIMIT_NOFILE)
        for left in (1, 3):  # too few for those that are sent, or for what it needs besides
            await until(lambda: server.num_fds() == quiet)
            used = {int(path.name) for path in Path(f"/proc/{server.pid}/fd").iterdir()}
            free = [number for number in range(1000) if number not in used]
            server.rlimit(psutil.RLIMIT_NOFILE, (free[left], limits[1]))
            with pytest.raises(ForkError, match="cannot fork: Too many open files"):
                await forked(fork_server, tmp_path / "none")
        server.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert await (await forked(fork_server, tmp_path / "none")).wait() > 0
        assert fork_server.pid == server.pid

    run(test)


def test_all_die_with_the_supervisor(artifact: Path) -> None:
    with ExitStack() as held:
        parent = held.enter_context(
            subprocess.Popen([sys.executable, "-c", PARENT, str(artifact)], stdout=subprocess.PIPE)
        )
        assert parent.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2
        for process in processes:
            process.suspend()  # or each would see the end of its socket, and leave by itself
        parent.kill()
        for process in processes:
            psutil.wait_procs([process], timeout=60)
            assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
