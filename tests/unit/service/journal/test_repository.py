"""Asynchronous access to the journal."""

from __future__ import annotations

import asyncio
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


def repository(paths: Paths, journal: Journal, disk: Disk) -> UpdateRepository:
    config = CurrentConfig(load_config(paths.root.parent / "edged.yaml"))
    return UpdateRepository(journal, disk, ModelStore(paths.models), config)


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
