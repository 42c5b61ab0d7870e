"""Asynchronous access to the journal."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from edged.artifacts.store import ModelStore
from edged.errors import UsageError
from service.config.current import CurrentConfig
from service.config.load import load_config
from service.journal.repository import UpdateRepository
from service.journal.states import WAY, State
from service.journal.store import Journal
from service.storage.paths import Paths
from service.system.disk_thread import Disk

CONFIG = "state_dir: state\nmodels: [{name: m, calibration: {dir: images}}]\nhistory: {max_updates: 10}\n"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "images").mkdir()
    (tmp_path / "edged.yaml").write_text(CONFIG)
    made = Paths(tmp_path / "state")
    made.make()
    return made


class Clocks:
    """Clocks of a device, which a test sets."""

    wall, steady = 1e9, 50.0


def repository(paths: Paths, journal: Journal, disk: Disk, clocks: type[Clocks] = Clocks) -> UpdateRepository:
    config = CurrentConfig(load_config(paths.root.parent / "edged.yaml"))
    return UpdateRepository(
        *(journal, disk, ModelStore(paths.models), config),
        wall=lambda: clocks.wall,
        steady=lambda: clocks.steady,
    )


def test_an_update_that_does_not_exist_is_named(paths: Paths) -> None:
    journal, disk = Journal(paths.journal), Disk()
    with pytest.raises(UsageError, match="no update 7; `edged history` lists them"):
        asyncio.run(repository(paths, journal, disk).get(7))
    disk.close()
    journal.close()


def test_an_update_is_committed_although_the_expired_ones_cannot_be_removed(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:

    async def main() -> tuple[State, int]:
        journal = Journal(paths.journal)
        disk = Disk()
        updates = repository(paths, journal, disk)
        for _ in range(11):  # one too many
            update = journal.create("m", "a.pt", 1)
            for state in WAY[1:-1]:
                journal.advance(update.id, state)
            committed = await updates.advance(update.id, WAY[-1])
        left = len(journal.find(limit=100))
        disk.close()
        journal.close()
        return committed.state, left

    Journal(paths.journal).close()
    with sqlite3.connect(paths.journal) as other:
        other.execute("CREATE TRIGGER full BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    other.close()
    assert asyncio.run(main()) == (State.COMMITTED, 11)
    assert "cannot remove old updates from the journal" in caplog.text
    assert "disk is full" in caplog.text
    with sqlite3.connect(paths.journal) as other:
        other.execute("DROP TRIGGER full")
    other.close()
    assert asyncio.run(main()) == (State.COMMITTED, 10)


def test_the_time_since_a_drop_follows_no_clock_that_is_set(paths: Paths) -> None:
    class Device(Clocks):
        pass

    async def main() -> list[float]:
        with contextlib.closing(Journal(paths.journal)) as journal, contextlib.closing(Disk()) as disk:
            updates = repository(paths, journal, disk, Device)
            update, again = [await updates.create("m", name, 1, 1e9 - 3, seen=47.0) for name in ("a.pt", "b.pt")]
            updates.note_retry(again)
            found = []
            for Device.wall, Device.steady in ((2e9, 57.0), (0.0, 58.0)):  # the clock is set ahead, then back
                found += [updates.seconds_since_drop(update), updates.seconds_since_drop(again)]
            return found

    assert asyncio.run(main()) == [10.0, 7.0, 11.0, 8.0]


def test_the_time_since_a_drop_counts_from_the_first_of_two_processes_and_is_never_negative(paths: Paths) -> None:
    class Device(Clocks):
        pass

    async def main() -> list[float]:
        with contextlib.closing(Journal(paths.journal)) as journal, contextlib.closing(Disk()) as disk:
            await repository(paths, journal, disk, Device).create("m", "a.pt", 1, 1e9, seen=50.0)
            restarted = repository(paths, journal, disk, Device)
            found = []
            for Device.wall, Device.steady in ((1e9 + 20, 7.0), (1e9 - 20, 8.0)):
                update = await restarted.create(
                    "m", "a.pt", 1, Device.wall, seen=Device.steady
                )  # the same file is found again
                found.append(restarted.seconds_since_drop(update))
            return found

    assert asyncio.run(main()) == [20.0, 0.0]
