"""What goes by itself."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.errors import StateError
from service.config.load import Config, load_config
from service.journal.states import State
from service.journal.store import Journal
from service.storage import retention
from service.storage.paths import Paths
from service.storage.retention import trim
from service.storage.state_folder import StateFolder

DAY_S = 86400


class Device:
    def __init__(self, folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "edged.yaml").write_text(
            "state_dir: state\nmodels: [{name: m, calibration: {dir: images}, capture: {max_age_days: 2}}]\n"
            "rejected: {keep: 3, keep_days: 10}\n"
        )
        self.config: Config = load_config(folder / "edged.yaml")
        self.paths = Paths(self.config.state_dir)
        self.paths.make()
        self.journal = Journal(self.paths.journal)

    def refuse(self, digest: str, age_days: float) -> Path:
        folder = self.paths.rejected / (digest * 64)
        folder.mkdir()
        (folder / "file").write_bytes(b"no checkpoint")
        then = time.time() - age_days * DAY_S
        os.utime(folder, (then, then))
        return folder

    def capture(self, model: str, age_days: float) -> Path:
        path = self.paths.capture(model) / f"{int((time.time() - age_days * DAY_S) * 1000):013}-01234567.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"pixels")
        return path

    def trim(self) -> None:
        trim(self.config, self.paths, self.journal)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.journal.close()


def left(folders: list[Path]) -> list[bool]:
    return [folder.exists() for folder in folders]


def test_rejected_files_go_without_anybody_asking(device: Device) -> None:
    device.trim()  # none yet
    folders = [device.refuse(digest, age) for digest, age in (("a", 0), ("b", 1), ("c", 11), ("d", 12), ("e", 13))]
    update = device.journal.create("m", "e.pt", 1)
    device.journal.advance(update.id, State.SETTLED)
    device.journal.advance(update.id, State.CLAIMED, sha256="e" * 64)  # being put aside just now
    device.trim()
    assert left(folders) == [True, True, False, False, True]
    more = [device.refuse(digest, 2) for digest in "fg"]
    device.trim()
    assert left(folders[:2]) == [True, True]
    assert sum(left(more)) == 1  # the third


def test_images_of_requests_that_are_too_old_or_of_no_model(device: Device) -> None:
    new, old, other = device.capture("m", 1), device.capture("m", 3), device.capture("gone", 1)
    device.trim()
    assert left([new, old, other.parent]) == [True, False, False]


def test_what_cannot_be_removed_is_told_and_keeps_nothing_else(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rejected, captured = device.refuse("a", 11), device.capture("gone", 1)

    def fails(path: Path) -> None:
        raise StateError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(retention, "remove_folder", fails)
    device.trim()
    assert left([rejected, captured]) == [True, True]
    for path in (rejected, captured.parent):
        assert f"cannot write {path}: Read-only file system" in caplog.text
    monkeypatch.undo()
    shutil.rmtree(captured.parent)
    device.trim()
    assert not rejected.exists()


def test_compiled_models_of_no_generation_go(device: Device) -> None:
    path = device.paths.engine_cache("m") / f"{'a' * 16}-openvino-{'b' * 16}"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"engine")
    device.trim()
    assert not path.exists()
    device.trim()


def test_a_clock_that_jumps_deletes_nothing_at_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day jumps by ten years, while the daemon runs and while it does not."""
    kept = [device.refuse("a", 1), device.capture("m", 1)]
    wall = time.time
    update = device.journal.create("m", "a.pt", 1)
    device.journal.advance(update.id, State.REJECTED, code="checksum", reason="it does not match")
    running = StateFolder.open(device.paths.root)
    monkeypatch.setattr(time, "time", lambda: wall() + 3650 * DAY_S)
    started = StateFolder.open(device.paths.root)
    for folder in (running, started):
        folder.ages._wall = time.time
        trim(device.config, device.paths, device.journal, folder.ages.now())
        assert left(kept) == [True, True]
        folder.journal.close()
    device.trim()  # by the wall clock
    assert left(kept) == [False, False]
