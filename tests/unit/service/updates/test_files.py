"""The files of updates: kept when they are not served, claimed again by a retry, put in order after a crash."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.journal.states import State
from service.journal.update import Update
from service.outcomes import Failure
from service.storage.paths import Paths
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.updates import files as module
from service.updates.files import UpdateFiles
from service.updates.kept import discard, keep

GOOD = b"a checkpoint"
SHA = hashlib.sha256(GOOD).hexdigest()
SUPERSEDED = Failure("superseded", "update 2 brings a newer file")


class Device:
    def __init__(self, root: Path) -> None:
        Paths(root).make()
        self.folder, self.disk = StateFolder.open(root), Disk()
        self.journal, self.paths = self.folder.journal, self.folder.paths
        self.files = UpdateFiles(self.folder, self.disk)

    def claim(self, name: str = "a.pt", data: bytes = GOOD) -> Update:
        update = self.journal.create("m", name, len(data))
        self.journal.advance(update.id, State.SETTLED)
        sha256 = hashlib.sha256(data).hexdigest()
        update = self.journal.advance(update.id, State.CLAIMED, sha256=sha256, key=f"{sha256}:1")
        file = self.folder.claimed_file(update)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        return update

    def supersede(self, update: Update) -> Update:
        asyncio.run(self.files.quarantine(update, State.SUPERSEDED, SUPERSEDED))
        update = self.journal.advance(update.id, State.SUPERSEDED, code=SUPERSEDED.code, reason=SUPERSEDED.reason)
        asyncio.run(self.files.discard_claim(update))
        return update

    def retry(self, update: Update) -> Update | None:
        return asyncio.run(self.files.claim_again(update, f"{update.sha256}:2"))

    def recover(self) -> None:
        """Start again after a crash."""
        asyncio.run(self.files.recover())

    def stored(self) -> list[str]:
        """The files of claimed/, rejected/ and superseded/, with names instead of digests."""
        folders = (self.paths.claimed, self.paths.rejected, self.paths.superseded)
        found = [path.relative_to(self.paths.root) for folder in folders for path in folder.glob("*/*")]
        return sorted(f"{path.parts[0]}/{path.name}" for path in found)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "state")
    yield made
    made.journal.close()
    made.disk.close()


def test_a_superseded_file_is_kept_and_taken_again(device: Device) -> None:
    ended = device.supersede(device.claim())
    assert device.stored() == ["superseded/file", "superseded/reason.json"]
    reason = json.loads((device.paths.superseded / SHA / "reason.json").read_text())
    assert (reason["update"], reason["file_name"], reason["result"]) == (ended.id, "a.pt", "superseded")
    again = device.retry(ended)
    assert again is not None
    assert device.stored() == ["claimed/file", "claimed/origin.json"]
    assert device.folder.claimed_file(again).read_bytes() == GOOD


def test_a_rejected_file_is_taken_again_and_its_evidence_stays(device: Device) -> None:
    update = device.claim()
    asyncio.run(device.files.quarantine(update, State.REJECTED, Failure("gate", "too bad")))
    update = device.journal.advance(update.id, State.REJECTED, code="gate", reason="too bad")
    asyncio.run(device.files.discard_claim(update))
    assert device.stored() == ["rejected/file", "rejected/reason.json"]
    assert device.retry(update) is not None
    assert device.stored() == ["claimed/file", "claimed/origin.json", "rejected/file", "rejected/reason.json"]


def test_a_file_that_is_not_kept_any_more_cannot_be_taken_again(device: Device) -> None:
    ended = device.supersede(device.claim())
    discard(device.paths.superseded / SHA / "file")
    assert device.retry(ended) is None
    assert device.journal.open_updates() == []


def test_a_claimed_file_that_another_open_update_needs_stays(device: Device) -> None:
    first, second = device.claim("a.pt"), device.claim("b.pt")
    device.supersede(first)
    assert device.stored() == ["claimed/file", "superseded/file", "superseded/reason.json"]
    device.journal.advance(second.id, State.FAILED)
    asyncio.run(device.files.discard_claim(second))
    assert device.stored() == ["superseded/file", "superseded/reason.json"]


class Killed(BaseException):
    """The daemon is killed at this place."""


@pytest.mark.parametrize("step", ["link", "retry"])
def test_a_retry_that_is_killed_leaves_what_can_be_retried(
    device: Device, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    ended = device.supersede(device.claim())
    with monkeypatch.context() as patched:
        patched.setattr(*((module, "link") if step == "link" else (device.journal, "retry")), killed)
        with pytest.raises(Killed):
            device.retry(ended)
    device.recover()
    assert device.stored() == ["superseded/file", "superseded/reason.json"]
    assert device.journal.open_updates() == []
    assert device.retry(ended) is not None


def test_a_retry_that_is_killed_after_it_was_journaled_goes_on(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    ended = device.supersede(device.claim())
    with monkeypatch.context() as patched:
        patched.setattr(module, "discard", killed)
        with pytest.raises(Killed):
            device.retry(ended)
    device.recover()
    (again,) = device.journal.open_updates()
    assert device.folder.claimed_file(again).read_bytes() == GOOD
    device.supersede(again)
    assert device.stored() == ["superseded/file", "superseded/reason.json"]


def test_after_a_crash_an_open_update_gets_its_file_back(device: Device) -> None:
    """Version 0.1.0 moved the file away before it journaled the end."""
    update = device.claim()
    keep(device.folder.claimed_file(update), device.paths.rejected / SHA, {})
    discard(device.folder.claimed_file(update))
    device.recover()
    assert device.folder.claimed_file(update).read_bytes() == GOOD


@pytest.mark.parametrize(
    ("state", "kept"), [(State.ROLLED_BACK, "rejected"), (State.SUPERSEDED, "superseded"), (State.COMMITTED, None)]
)
def test_after_a_crash_the_claimed_file_of_an_ended_update_is_kept_or_removed(
    device: Device, state: State, kept: str | None
) -> None:
    update = device.claim()
    if state is State.SUPERSEDED:
        device.journal.advance(update.id, state)
    else:
        way = list(State)
        for step in way[way.index(State.VERIFIED) : way.index(State.COMMITTED) + 1]:
            device.journal.advance(update.id, step)
        if state is State.ROLLED_BACK:
            device.journal.advance(update.id, state)
    device.recover()
    assert device.stored() == ([] if kept is None else [f"{kept}/file", f"{kept}/reason.json"])


def test_a_claimed_file_that_was_not_journaled_is_left_alone(device: Device) -> None:
    folder = device.paths.claimed / ("0" * 64)
    folder.mkdir()
    (folder / "file").write_bytes(b"its source is in the drop folder")
    device.recover()
    assert device.stored() == ["claimed/file"]


def test_what_a_killed_worker_was_writing_is_removed_and_what_others_write_stays(tmp_path: Path) -> None:
    device = Device(tmp_path)
    update = device.claim()
    half = [
        device.paths.workplace(update.id) / ".artifact.0a1b2c3d.tmp",
        device.paths.calibration("m") / ".d1.0a1b2c3d.tmp",
    ]
    others = [device.paths.workplace(12) / ".artifact.0a1b2c3d.tmp", device.paths.calibration("n") / ".d1.0a1b2c3d.tmp"]
    for path in [*half, *others, device.files.staged(update)]:
        path.mkdir(parents=True)
        (path / "content").touch()
    asyncio.run(device.files.clear_half_written(update))
    assert not any(path.exists() for path in half)
    assert all(path.exists() for path in [*others, device.files.staged(update)])  # the trace of the worker is kept
    half[0].mkdir()
    asyncio.run(device.files.clear_staging(update))
    assert not half[0].exists()
    assert not device.files.staged(update).exists()
    assert others[0].exists()


def test_the_workplace_of_a_worker_is_empty_and_links_in_it_are_found(tmp_path: Path) -> None:
    device = Device(tmp_path)
    update = device.claim()
    staged = device.files.staged(update)
    staged.mkdir(parents=True)
    (staged / "left behind").touch()
    asyncio.run(device.files.prepare_for_worker(update))
    assert list(device.files.workplace(update).iterdir()) == []
    staged.mkdir()
    (staged / "weights").write_bytes(b"weights")
    assert asyncio.run(device.files.odd_file(update)) is None
    (staged / "manifest.sha256").symlink_to(device.paths.journal)
    assert asyncio.run(device.files.odd_file(update)) == "artifact/manifest.sha256"
    (staged / "manifest.sha256").unlink()
    (staged / "again").hardlink_to(staged / "weights")
    assert asyncio.run(device.files.odd_file(update)) in ("artifact/again", "artifact/weights")
