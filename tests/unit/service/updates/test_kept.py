"""Files that were not served, with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.errors import StateError
from service.updates.kept import discard, keep, link


def claimed(root: Path, content: bytes) -> Path:
    file = root / "claimed" / "abc" / "file"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_the_file_is_kept_next_to_its_reason(tmp_path: Path) -> None:
    file = claimed(tmp_path, b"bad")
    keep(file, tmp_path / "rejected" / "abc", {"code": "checkpoint", "reason": "why"})
    folder = tmp_path / "rejected" / "abc"
    assert sorted(path.name for path in folder.iterdir()) == ["file", "reason.json"]
    assert (folder / "file").read_bytes() == file.read_bytes() == b"bad"
    assert json.loads((folder / "reason.json").read_text()) == {"code": "checkpoint", "reason": "why"}


def test_keeping_again_after_a_crash_finishes_it(tmp_path: Path) -> None:
    folder = tmp_path / "rejected" / "abc"
    file = claimed(tmp_path, b"bad")
    keep(file, folder, {"reason": "first"})
    keep(file, folder, {"reason": "second"})
    discard(file)
    keep(file, folder, {"reason": "third"})  # the claimed file is gone by now
    assert sorted(path.name for path in folder.iterdir()) == ["file", "reason.json"]
    assert (folder / "file").read_bytes() == b"bad"
    assert json.loads((folder / "reason.json").read_text()) == {"reason": "third"}


def test_a_kept_file_is_claimed_again_in_place_of_what_is_there(tmp_path: Path) -> None:
    kept = tmp_path / "superseded" / "abc" / "file"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"good")
    file = claimed(tmp_path, b"of a crash")
    for _ in range(2):
        link(kept, file.parent)
        assert [path.name for path in file.parent.iterdir()] == ["file"]
        assert file.read_bytes() == b"good"
    discard(kept)
    assert file.read_bytes() == b"good"


def test_a_folder_that_cannot_be_created_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "rejected").write_text("in the way")
    with pytest.raises(StateError, match="cannot write"):
        keep(claimed(tmp_path, b"bad"), tmp_path / "rejected" / "abc", {})


def test_discarding_twice_is_harmless(tmp_path: Path) -> None:
    file = claimed(tmp_path, b"done")
    discard(file)
    discard(file)
    assert not file.parent.exists()
