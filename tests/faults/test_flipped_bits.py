"""Bits that are flipped in a checkpoint without checksums of its own: a `.sha256` shows all, without it the worst."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.sections.flipped_bits import FILES, KINDS, OUTCOMES, Checkpoint, outcome_of, page, tried
from edged.calibration.dataset import ImageCache, build_cache
from tests.support.tasks import Task
from tests.support.trained import INPUT

ANYWHERE, HEADER, EXPONENT, MANY = KINDS


@pytest.fixture(scope="module")
def good(task: Task) -> Checkpoint:
    return Checkpoint(task)


@pytest.fixture(scope="module")
def images(task: Task, tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return build_cache(task.calibration, tmp_path_factory.mktemp("cache"), INPUT)


@pytest.mark.parametrize("kind", [pytest.param(ANYWHERE, marks=pytest.mark.slow), HEADER, EXPONENT, MANY])
def test_flipped_bits_are_refused_or_harmless(kind: str, good: Checkpoint, images: ImageCache, tmp_path: Path) -> None:
    row = tried(kind, good, images, tmp_path, FILES)
    print(row)
    assert row["faults"] == []
    assert (row["files"], row["checksum"]) == (FILES, FILES)
    assert sum(row[outcome] for outcome in OUTCOMES) == FILES
    assert row["taken"] == 0 or kind in (ANYWHERE, MANY)


def test_the_file_is_taken_as_it_was(good: Checkpoint, images: ImageCache, tmp_path: Path) -> None:
    """The control."""
    path = tmp_path / "good.safetensors"
    path.write_bytes(good.flipped([]))
    assert outcome_of(path, images) == "taken"
    assert len(good.small) > 250_000


def test_a_file_that_is_taken_in_spite_of_its_checksum_is_a_fault(
    good: Checkpoint, images: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(good, "flipped", lambda bits: good.data)
    row = tried(ANYWHERE, good, images, tmp_path, 1)
    assert (row["checksum"], row["taken"], len(row["faults"])) == (0, 1, 1)
    assert page([row]).splitlines()[-1] == "| **all** | 1 | 0 | 0 | 0 | 1 | 1 |"
