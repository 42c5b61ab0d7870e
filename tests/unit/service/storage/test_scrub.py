"""The slow check of generations on the disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.artifacts.store import ModelStore
from service.storage import scrub as module
from service.storage.generations import GenerationRepository
from service.storage.scrub import InterruptedScrubError, Scrub, scrub_models
from service.system.disk_thread import Disk

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GenerationRepository, Disk]]:
    """Two generations of model m, read in pieces of 4096 bytes without pauses."""
    monkeypatch.setattr(module, "PIECE_BYTES", 4096)
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    store, disk = ModelStore(tmp_path / "models"), Disk()
    for _ in range(2):
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "weights.safetensors").write_bytes(WEIGHTS)
        entry = {"sha256": hashlib.sha256(WEIGHTS).hexdigest(), "bytes": len(WEIGHTS)}
        (staged / "manifest.json").write_text(json.dumps({"weights": entry}))
        store.publish("m", staged)
    yield GenerationRepository(store, disk), disk
    disk.close()


def check(generations: tuple[GenerationRepository, Disk], goes_on: Iterator[bool]) -> dict[int, str | None]:
    """Check both generations, again after each interruption."""
    found: dict[int, str | None] = {}

    async def note(_: str, number: int, damage: str | None) -> None:
        found[number] = damage

    async def main() -> None:
        scrub, pending = Scrub(*generations, lambda: next(goes_on, True)), [("m", 1), ("m", 2)]
        while pending:
            try:
                await scrub_models(scrub, pending, note)
            except InterruptedScrubError:
                continue

    asyncio.run(main())
    return found


def test_a_changed_bit_is_found_and_whole_ones_are_whole(generations: tuple[GenerationRepository, Disk]) -> None:
    assert check(generations, iter(())) == {1: None, 2: None}
    path = generations[0].path("m", 2) / "weights.safetensors"
    path.write_bytes(WEIGHTS[:-1] + b"\0")
    found = check(generations, iter(()))
    assert (found[1], str(found[2]).split(" has ")[0]) == (None, str(path))
    path.unlink()
    assert "cannot read" in str(check(generations, iter(()))[2])


def test_other_work_interrupts_it_and_what_was_not_checked_is_checked_later(
    generations: tuple[GenerationRepository, Disk],
) -> None:
    assert check(generations, iter([True, False, True, True, True, True, True, False])) == {1: None, 2: None}
