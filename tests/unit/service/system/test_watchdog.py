"""The watchdog is fed if and only if nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.system.disk_thread import Disk
from service.system.liveness import Liveness
from service.system.systemd import StatusLine
from service.system.watchdog import beat

INTERVAL_S = 0.05


class Manager:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def receive(self) -> str:
        return (await asyncio.get_running_loop().sock_recv(self._socket, 1000)).decode()

    def discard_messages(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1000)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def http_answers() -> bool:
    """Stand in for a probe that succeeds."""
    return True


async def expect_silence(manager: Manager, status: StatusLine) -> None:
    """Wait until the status line has a trouble, then check that nothing is sent for several intervals."""
    while status.trouble is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(2 * INTERVAL_S)
    manager.discard_messages()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(manager.receive(), 6 * INTERVAL_S)


def test_a_loop_that_hangs_stops_the_feeding(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        liveness, status = Liveness(0.0), StatusLine()
        feeding = asyncio.create_task(beat(liveness, http_answers, INTERVAL_S, status))
        assert await manager.receive() == "WATCHDOG=1"
        assert await manager.receive() == "WATCHDOG=1"
        with liveness.loop("drop folder") as loop:
            loop.heartbeat()
            await expect_silence(manager, status)
            assert status.trouble == "no progress: drop folder"
            loop.expect_within(None)
            assert await asyncio.wait_for(manager.receive(), 60) == "WATCHDOG=1"
            assert status.trouble is None
        feeding.cancel()

    asyncio.run(main())
    assert caplog.text.count("no progress: drop folder") == 1  # not once per interval


def test_an_http_server_that_hangs_stops_the_feeding(manager: Manager) -> None:
    async def main() -> None:
        answers, status = threading.Event(), StatusLine()
        feeding = asyncio.create_task(beat(Liveness(), answers.is_set, INTERVAL_S, status))
        await expect_silence(manager, status)
        assert status.trouble == "no progress: http"
        answers.set()
        assert await asyncio.wait_for(manager.receive(), 60) == "WATCHDOG=1"
        feeding.cancel()

    asyncio.run(main())


def test_disk_work_that_hangs_stops_the_feeding(manager: Manager) -> None:
    async def main() -> None:
        liveness, go_on, status = Liveness(0.0), threading.Event(), StatusLine()
        disk = Disk(liveness)
        feeding = asyncio.create_task(beat(liveness, http_answers, INTERVAL_S, status))
        assert await manager.receive() == "WATCHDOG=1"
        writing = asyncio.create_task(disk(go_on.wait, 60))
        await expect_silence(manager, status)
        assert status.trouble == "no progress: disk"
        go_on.set()
        assert await writing
        assert await asyncio.wait_for(manager.receive(), 60) == "WATCHDOG=1"
        feeding.cancel()
        disk.close()

    asyncio.run(main())
