"""What paths lead to, impossible ones included."""

from __future__ import annotations

import os
from pathlib import Path

from edged.file_kind import FILE, FOLDER, OTHER, kind_of


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "lost").symlink_to("nothing")
    kinds = [kind_of(tmp_path / name) for name in ("", "file", "pipe", "link", "lost", "none")]
    assert kinds == [FOLDER, FILE, OTHER, FILE, None, None]


def test_impossible_names_lead_nowhere(tmp_path: Path) -> None:
    for name in ("a" * 300, "a/" * 3000, "\0", "\ud800", "file/below"):
        (tmp_path / "file").touch()
        assert kind_of(tmp_path / name) is None
