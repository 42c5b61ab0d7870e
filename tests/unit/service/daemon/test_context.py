"""What the parts of the supervisor share."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from edged.artifacts.store import ModelStore
from service.config.load import load_config
from service.daemon.context import Context
from service.journal.states import WAY, State
from service.journal.store import Journal
from service.metrics.registry import Metrics
from service.storage.paths import Paths
from service.system.disk_thread import Disk

CONFIG = "state_dir: state\nmodels: [{name: m, calibration: {dir: images}}]\nhistory: {max_updates: 10}\n"


def test_an_update_is_committed_although_the_past_cannot_be_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "edged.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "edged.yaml")
    paths = Paths(config.state_dir)
    paths.make()

    async def main() -> tuple[State, int]:
        journal = Journal(paths.journal)
        context = Context(config, paths, journal, ModelStore(paths.models), Metrics(CollectorRegistry()), Disk())
        for _ in range(11):  # one too many
            update = journal.create("m", "a.pt", 1)
            for state in WAY[1:-1]:
                journal.advance(update.id, state)
            committed = await context.advance(update.id, WAY[-1])
        left = len(journal.list(limit=100))
        context.disk.close()
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
