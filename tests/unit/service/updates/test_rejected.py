"""Files that cannot be used, with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.errors import StateError
from service.updates.rejected import discard, reject


def claimed(root: Path, content: bytes) -> Path:
    file = root / "claimed" / "abc" / "file"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_the_file_moves_next_to_its_reason(tmp_path: Path) -> None:
    file = claimed(tmp_path, b"bad")
    reject(file, tmp_path / "rejected" / "abc", {"code": "checkpoint", "reason": "why"})
    assert not file.parent.exists()
    folder = tmp_path / "rejected" / "abc"
    assert (folder / "file").read_bytes() == b"bad"
    assert json.loads((folder / "reason.json").read_text()) == {"code": "checkpoint", "reason": "why"}


def test_rejecting_again_after_a_crash_finishes_it(tmp_path: Path) -> None:
    folder = tmp_path / "rejected" / "abc"
    file = claimed(tmp_path, b"bad")
    reject(file, folder, {"reason": "first"}, keep_source=True)
    assert file.exists()
    reject(file, folder, {"reason": "second"})
    reject(file, folder, {"reason": "third"})  # the file is gone by now
    assert (folder / "file").read_bytes() == b"bad"
    assert json.loads((folder / "reason.json").read_text()) == {"reason": "third"}


def test_a_folder_that_cannot_be_created_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "rejected").write_text("in the way")
    with pytest.raises(StateError, match="cannot write"):
        reject(claimed(tmp_path, b"bad"), tmp_path / "rejected" / "abc", {})


def test_discarding_twice_is_harmless(tmp_path: Path) -> None:
    file = claimed(tmp_path, b"done")
    discard(file)
    discard(file)
    assert not file.parent.exists()
