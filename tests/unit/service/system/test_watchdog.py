"""The watchdog is fed while everything moves, and only then."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.system.liveness import Liveness
from service.system.systemd import StatusLine
from service.system.watchdog import beat

PATIENCE_S = 30.0
INTERVAL_S = 0.05
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{"live": true}'


class Manager:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def told(self) -> str:
        return (await asyncio.get_running_loop().sock_recv(self._socket, 1000)).decode()

    def nothing_more(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1000)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An HTTP server that is merely slow to answer, as on a busy machine, does not count as one that hangs."""
    monkeypatch.setattr("service.system.watchdog._PROBES_PER_BEAT", INTERVAL_S / PATIENCE_S)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@contextlib.asynccontextmanager
async def http(path: Path, answers: asyncio.Event) -> AsyncIterator[None]:
    """A daemon that answers while `answers` is set."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answers.wait()
        writer.write(ANSWER)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        answers.set()
        server.close()


async def silence(manager: Manager, status: StatusLine) -> None:
    """What was on its way comes; once trouble is seen, nothing for several intervals."""
    while status.trouble is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(2 * INTERVAL_S)
    manager.nothing_more()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(manager.told(), 6 * INTERVAL_S)


@pytest.mark.usefixtures("patient")
def test_a_loop_that_hangs_stops_the_feeding(
    manager: Manager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        answers, liveness, status = asyncio.Event(), Liveness(0.0), StatusLine()
        answers.set()
        async with http(tmp_path / "sock", answers):
            feeding = asyncio.create_task(beat(liveness, tmp_path / "sock", INTERVAL_S, status))
            assert await manager.told() == "WATCHDOG=1"
            assert await manager.told() == "WATCHDOG=1"
            with liveness.loop("drop folder") as loop:
                loop.heartbeat()
                await silence(manager, status)
                assert status.trouble == "no progress: drop folder"
                loop.expect_within(None)
                assert await asyncio.wait_for(manager.told(), 10) == "WATCHDOG=1"
                assert status.trouble is None
            feeding.cancel()

    asyncio.run(main())
    assert caplog.text.count("no progress: drop folder") == 1  # not once an interval


def test_an_http_server_that_hangs_stops_the_feeding(manager: Manager, tmp_path: Path) -> None:
    async def main() -> None:
        answers, status = asyncio.Event(), StatusLine()
        async with http(tmp_path / "sock", answers):
            feeding = asyncio.create_task(beat(Liveness(), tmp_path / "sock", INTERVAL_S, status))
            await silence(manager, status)
            assert status.trouble == "no progress: http"
            answers.set()
            assert await asyncio.wait_for(manager.told(), 10) == "WATCHDOG=1"
            feeding.cancel()

    asyncio.run(main())


@pytest.mark.usefixtures("patient")
def test_a_thread_at_the_disk_that_hangs_is_seen(manager: Manager, tmp_path: Path) -> None:
    from service.system.disk_thread import Disk

    async def main() -> None:
        answers, liveness, go_on, status = asyncio.Event(), Liveness(0.0), threading.Event(), StatusLine()
        answers.set()
        disk = Disk(liveness)
        async with http(tmp_path / "sock", answers):
            feeding = asyncio.create_task(beat(liveness, tmp_path / "sock", INTERVAL_S, status))
            assert await manager.told() == "WATCHDOG=1"
            writing = asyncio.create_task(disk(go_on.wait, 60))
            await silence(manager, status)
            assert status.trouble == "no progress: disk"
            go_on.set()
            assert await writing
            assert await asyncio.wait_for(manager.told(), 10) == "WATCHDOG=1"
            feeding.cancel()
        disk.close()

    asyncio.run(main())
