"""Making a damaged generation again from a kept file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service.config.current import CurrentConfig
from service.config.load import CalibrationConfig, Config, ModelConfig
from service.journal.states import WAY, State
from service.journal.update import Update
from service.storage.paths import Paths
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.updates.checkpoints import KeptCheckpoints
from service.updates.files import UpdateFiles

SHA256 = "ab" * 32


def test_a_kept_file_is_claimed_for_a_new_update(tmp_path: Path) -> None:
    Paths(tmp_path).make()
    folder, disk = StateFolder.open(tmp_path), Disk()
    model = ModelConfig(name="m", calibration=CalibrationConfig(dir=tmp_path))
    config = CurrentConfig(Config(state_dir=tmp_path, models=(model,)))
    checkpoints = KeptCheckpoints(config, folder, disk, UpdateFiles(folder, disk))
    update = folder.journal.create("m", "a.pt", 4)
    for state in WAY[1:]:
        update = folder.journal.advance(update.id, state, sha256=SHA256, generation=1)
    offered: list[Update] = []

    async def main() -> None:
        assert not await checkpoints.is_kept(update)
        await checkpoints.make_again(update)  # nothing happens: the file of a committed update is not kept
        assert folder.journal.open_updates() == []
        kept = folder.kept(State.ROLLED_BACK, SHA256)
        kept.mkdir()
        (kept / "file").write_bytes(b"file")
        assert await checkpoints.is_kept(update)
        await checkpoints.make_again(update)
        (first,) = folder.journal.open_updates()
        assert (first.state, first.file_name, first.key) == (State.CLAIMED, "a.pt", model.key(SHA256))
        assert folder.claimed_file(first).read_bytes() == b"file"
        checkpoints.offer = offered.append
        await checkpoints.make_again(update)

    asyncio.run(main())
    assert [update.id for update in offered] == [folder.journal.open_updates()[-1].id]
    disk.close()
    folder.journal.close()
