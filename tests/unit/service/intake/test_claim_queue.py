"""Drops that cannot be taken now: each is given back, and taken once the cause is gone. The disk's errors are real."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from edged.errors import StateError
from service.config.current import CurrentConfig
from service.config.load import load_config
from service.intake import claim as claim_module
from service.intake.claim_queue import ClaimListener, ClaimQueue
from service.intake.drop_folder import DropFolder, Refusal
from service.intake.watcher import Drop, Watcher, WatchOptions
from service.journal.holds import Holds
from service.journal.repository import UpdateRepository
from service.journal.states import State
from service.journal.update import PAUSED, Hold, Update
from service.metrics.registry import Metrics
from service.reporting.files import Reports
from service.rollout.records import UpdateRecords
from service.storage.paths import Paths
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.system.liveness import Liveness
from tests.support.small_disk import SmallDisk, missing, small_disk

TIMEOUT_S = 60
RESCAN_S = 0.5  # longer than the time between two scans, so that what waits is listed meanwhile


class Device:
    """The intake of a device: its watcher, its claim queue and its journal."""

    def __init__(self, root: Path, state: Path) -> None:
        (root / "images").mkdir(exist_ok=True)
        (root / "drop" / "m").mkdir(parents=True, exist_ok=True)
        config = root / "edged.yaml"
        config.write_text(
            f"state_dir: {state}\ndrop_dir: {root / 'drop'}\nmodels: [{{name: m, calibration: {{dir: images}}}}]\n"
        )
        Paths(state).make()
        self.drops = root / "drop" / "m"
        self.folder, self.disk = StateFolder.open(state), Disk()
        self.journal = self.folder.journal
        current = CurrentConfig(load_config(config))
        updates = UpdateRepository(self.journal, self.disk, self.folder.store, current)
        records = UpdateRecords(updates, Metrics(CollectorRegistry()), Reports(self.folder, self.disk))
        self.holds = Holds(self.journal, self.disk)
        self.claimed: asyncio.Queue[Update] = asyncio.Queue()
        self.given_back: asyncio.Queue[str] = asyncio.Queue()
        self.truncated: Callable[[Update, str], Awaitable[None]] = self._truncated
        listener = ClaimListener(
            claimed=self.claimed.put_nowait,
            not_settled=lambda drop: self.watcher.release(drop.path),
            given_back=self._give_back,
            truncated=lambda update, missing: self.truncated(update, missing),
        )
        self.queue = ClaimQueue(current, self.folder.paths.claimed, records, self.holds, listener, Liveness())
        self.watcher = Watcher(
            DropFolder(root / "drop", ["m"], 1 << 20), WatchOptions(0.0, RESCAN_S, "poll"), self.queue.put
        )

    def _give_back(self, found: Drop | Refusal, reason: str) -> None:
        self.watcher.give_back(found, reason)
        self.given_back.put_nowait(reason)

    async def _truncated(self, update: Update, missing: str) -> None:
        raise StateError(f"full: {missing}")

    def drop(self, data: bytes = b"weights") -> Path:
        path = self.drops / "a.pt"
        path.write_bytes(data)
        return path

    def read_only(self, on: bool) -> None:
        """Have SQLite itself refuse every write, as on a disk that was remounted read-only."""
        self.journal._db.execute(f"PRAGMA query_only = {'ON' if on else 'OFF'}")

    async def until_given_back(self) -> str:
        return await asyncio.wait_for(self.given_back.get(), TIMEOUT_S)

    async def until_claimed(self) -> Update:
        return await asyncio.wait_for(self.claimed.get(), TIMEOUT_S)

    async def until_listed(self) -> str:
        while not (listed := self.watcher.unclaimed):
            await asyncio.sleep(0.01)
        return str(listed[0]["reason"])

    async def until_taken(self, path: Path) -> None:
        while path.exists():
            await asyncio.sleep(0.01)

    async def until_nothing_is_listed(self) -> None:
        while self.watcher.unclaimed:
            await asyncio.sleep(0.01)

    def notes(self, update: Update) -> list[str]:
        """Why the update was given back, as its history tells."""
        return [event.detail["reason"] for event in self.journal.events(update.id) if "reason" in event.detail]


@asynccontextmanager
async def device_in(root: Path, state: Path | None = None) -> AsyncIterator[Device]:
    device = Device(root, state or root / "state")
    await device.watcher.start()
    try:
        yield device
    finally:
        await device.watcher.stop()
        await device.queue.close()
        device.read_only(False)
        device.journal.close()
        device.disk.close()


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("twice", [False, True])
def test_a_file_that_cannot_be_claimed_is_taken_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, twice: bool
) -> None:
    """The copy fails; where `twice`, the journal then fails, too, and goes on failing."""
    reason = os.strerror(fault)

    async def main() -> None:
        async with device_in(tmp_path) as device:
            failing = True

            def fsync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
                if failing:
                    device.read_only(twice)
                    raise OSError(fault, reason)
                real(descriptor)

            monkeypatch.setattr(os, "fsync", fsync)
            path = device.drop()
            assert reason in await device.until_given_back()
            assert "it cannot be taken now: cannot write" in await device.until_listed()
            assert ("readonly" if twice else reason) in await device.until_given_back()
            failing = False
            device.read_only(False)
            update = await device.until_claimed()
            assert (update.state, path.exists()) == (State.CLAIMED, False)
            assert (device.folder.claimed_file(update)).read_bytes() == b"weights"
            assert [found.id for found in device.journal.find()] == [update.id]
            assert "readonly" in " ".join(device.notes(update)) if twice else reason in device.notes(update)[0]
            await device.until_nothing_is_listed()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A filesystem of one MiB."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


def test_a_file_that_meets_a_full_disk_is_taken_once_there_is_room(tmp_path: Path, disk: SmallDisk) -> None:
    async def main() -> None:
        async with device_in(tmp_path, disk.path / "state") as device:
            disk.fill()
            path = device.drop(b"w" * (1 << 16))
            for _ in range(3):
                reason = await device.until_given_back()
                assert "full" in reason or "No space left" in reason
            assert path.exists()
            disk.clear()
            update = await device.until_claimed()
            assert device.folder.claimed_file(update).stat().st_size == 1 << 16
            assert not path.exists()
            assert device.notes(update)

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


def test_a_file_that_the_device_cannot_read_is_not_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with device_in(tmp_path) as device:
            path = device.drops / "a.pt"
            failing = True

            def open_(name: object, *args: int, real: Callable[..., int] = os.open) -> int:
                if failing and name == path:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return real(name, *args)

            monkeypatch.setattr(claim_module.os, "open", open_)
            device.drop()
            assert "Input/output error" in await device.until_given_back()
            failing = False
            assert (await device.until_claimed()).state is State.CLAIMED

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


def test_a_refusal_that_cannot_be_journaled_is_journaled_later(tmp_path: Path) -> None:
    async def main() -> None:
        async with device_in(tmp_path) as device:
            device.read_only(True)
            (device.drops / "link.pt").symlink_to("/etc/passwd")
            assert "readonly" in await device.until_given_back()
            device.read_only(False)
            while not (found := device.journal.find(state=State.REJECTED)):
                await asyncio.sleep(0.01)
            assert [update.code for update in found] == ["not_a_file"]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


def test_a_cut_file_that_cannot_be_rejected_is_handed_on(tmp_path: Path) -> None:
    """It has left the drop folder, so nothing else could end its update."""

    async def main() -> None:
        async with device_in(tmp_path) as device:
            await device.watcher.stop()
            path = device.drop()
            device.queue.put(Drop("m", path, 7, 0.0, "quiet", truncated="its end"))
            assert (await device.until_claimed()).state is State.CLAIMED
            assert not path.exists()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


def test_parked_files_are_released_though_the_end_of_one_cannot_be_journaled(tmp_path: Path) -> None:
    async def main() -> None:
        async with device_in(tmp_path) as device:
            await device.holds.put("m", Hold(paused=True))
            gone, there = device.drops / "a.pt", device.drops / "b.pt"
            for path in (gone, there):
                path.write_bytes(b"weights")
            while device.queue.parked("m") < 2:
                await asyncio.sleep(0.01)
            gone.unlink()
            assert {update.code for update in device.journal.find()} == {PAUSED}
            await device.holds.put("m", Hold())
            device.read_only(True)
            await device.queue.release("m")
            assert device.queue.parked("m") == 0
            device.read_only(False)
            assert (await device.until_claimed()).file_name == "b.pt"

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


@pytest.mark.parametrize("since", ["nothing", "replaced", "ended"])
def test_a_file_that_was_claimed_right_before_the_daemon_died_is_no_second_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    """What was journaled and not removed any more is removed; another file, or the same once more, is a new drop."""

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(claim_module, "remove", lambda *_: None)
            async with device_in(tmp_path) as device:
                path = device.drop()
                before = await device.until_claimed()
                if since == "ended":
                    device.journal.advance(before.id, State.REJECTED, code="checkpoint")
        if since == "replaced":
            path.write_bytes(b"WEIGHTS")
        again = since == "replaced"
        async with device_in(tmp_path) as device:  # the daemon has started again
            if again:
                assert (await device.until_claimed()).id == before.id + 1
            await device.until_taken(path)
            assert len(device.journal.find()) == 1 + again
            device.drop()  # the same file, dropped once more
            assert (await device.until_claimed()).id == before.id + 1 + again

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


def test_a_claimed_file_that_cannot_be_removed_is_taken_once_and_removed_later(tmp_path: Path, disk: SmallDisk) -> None:
    """The drop folder is read-only, as a network share may become; a restart in between changes nothing."""
    folder = disk.path / "m"
    folder.mkdir()
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "m").symlink_to(folder)

    async def first() -> int:
        async with device_in(tmp_path) as device:
            await device.watcher.stop()
            drop = drop_of(device.drop())
            disk.remount("ro")
            device.queue.put(drop)
            update = await device.until_claimed()
            for _ in range(2):
                expected = f"it is update {update.id} already, and cannot be removed: Read-only file system"
                assert await device.until_given_back() == expected
                device.queue.put(drop)
            return update.id

    async def second(taken: int) -> None:
        async with device_in(tmp_path) as device:
            await device.watcher.stop()
            path = device.drops / "a.pt"
            device.queue.put(drop_of(path))
            assert f"it is update {taken} already" in await device.until_given_back()
            disk.remount("rw")
            device.queue.put(drop_of(path))
            while path.exists():
                await asyncio.sleep(0.01)
            device.queue.put(drop_of(device.drop(b"another")))  # as long, with the same name
            assert (await device.until_claimed()).id == taken + 1
            assert [update.id for update in device.journal.find()] == [taken + 1, taken]

    taken = asyncio.run(asyncio.wait_for(first(), TIMEOUT_S))
    asyncio.run(asyncio.wait_for(second(taken), TIMEOUT_S))


@pytest.mark.parametrize("ahead_s", [-1e6, 0.0, 1e9])
def test_a_file_that_was_rejected_is_known_again_and_a_corrected_one_is_taken(tmp_path: Path, ahead_s: float) -> None:
    """Whatever the clock said when it was rejected: devices start with a wrong one."""

    async def main() -> None:
        async with device_in(tmp_path) as device:
            await device.watcher.stop()
            device.journal._clock = lambda: time.time() + ahead_s
            path = device.drops / "a.pt"
            (device.drops / "a.pt.sha256").write_text("0" * 64)
            drop = drop_of(device.drop())
            device.queue.put(drop)
            while not device.journal.find(state=State.REJECTED):
                await asyncio.sleep(0.01)
            device.queue.put(drop)  # as after a restart
            other = device.drops / "b.pt"
            other.write_bytes(b"weights")
            device.queue.put(drop_of(other))
            assert (await device.until_claimed()).file_name == "b.pt"
            assert len(device.journal.find(state=State.REJECTED)) == 1
            device.journal._clock = time.time
            (device.drops / "a.pt.sha256").write_text(hashlib.sha256(b"weights").hexdigest())
            device.queue.put(drop_of(path))
            assert (await device.until_claimed()).file_name == "a.pt"

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


def drop_of(path: Path) -> Drop:
    return Drop("m", path, path.stat().st_size, time.monotonic(), "quiet")
