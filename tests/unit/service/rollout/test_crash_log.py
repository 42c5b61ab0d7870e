"""What is remembered of crashes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry

from edged.artifacts.store import ModelStore
from service.config.current import CurrentConfig
from service.config.load import load_config
from service.journal.repository import UpdateRepository
from service.journal.states import WAY
from service.journal.store import Journal
from service.metrics.registry import Metrics
from service.rollout.crash_log import CrashLog
from service.storage.paths import Paths
from service.system.disk_thread import Disk


def test_crashes_are_counted_and_the_journal_does_not_fill_up(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "edged.yaml").write_text("state_dir: state\nmodels: [{name: m, calibration: {dir: images}}]\n")
    config = load_config(tmp_path / "edged.yaml")
    paths = Paths(config.state_dir)
    paths.make()
    metrics = Metrics(CollectorRegistry())

    async def main() -> list[dict[str, object]]:
        journal = Journal(paths.journal)
        disk = Disk()
        updates = UpdateRepository(journal, disk, ModelStore(paths.models), CurrentConfig(config))
        update = journal.create("m", "a.pt", 1)
        for state in WAY[1:]:
            journal.advance(update.id, state, generation=4)
        crashes = CrashLog(updates, metrics, "m")
        for number in range(20):
            crashes.restarted(4, f"crash {number + 1}")
            crashes.not_started()
        crashes.restarted(9, "of a generation that the journal does not know")
        while crashes._tasks:
            await asyncio.wait(crashes._tasks)
        found = [event.detail for event in journal.events(update.id)[len(WAY) :]]
        assert journal.get(update.id).state is WAY[-1]
        disk.close()
        journal.close()
        return found

    expected = [{"crash": f"crash {number}", "crashes": number} for number in (1, 2, 4, 8, 16)]
    assert asyncio.run(main()) == expected
    assert metrics.registry.get_sample_value("edged_generation_restarts_total", {"model": "m"}) == 21
    assert metrics.registry.get_sample_value("edged_generation_failed_starts_total", {"model": "m"}) == 20
