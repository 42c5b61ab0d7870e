from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from service.intake.drop_folder import DropFolder, is_ignored
from service.intake.temporaries import Temporaries, temporary_in


@pytest.fixture
def folder(tmp_path: Path) -> DropFolder:
    made = DropFolder(tmp_path, ["m"], 1 << 20)
    made.make()
    return made


def test_a_file_is_removed_once_it_has_not_changed_for_the_time_given(
    folder: DropFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    abandoned, grows = temporary_in(folder.root / "m"), temporary_in(folder.root)
    assert is_ignored(abandoned.name)
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))  # of a device whose clock was not set: that says nothing
    temporaries = Temporaries(abandoned_s=10.0)
    for now in (100.0, 105.0, 109.9):
        with grows.open("ab") as file:
            file.write(b"x")
        temporaries.remove_abandoned(folder.scan().temporaries, now)
        assert abandoned.exists()
    temporaries.remove_abandoned(folder.scan().temporaries, 110.0)
    assert (abandoned.exists(), grows.exists()) == (False, True)
    assert caplog.messages == [f"{abandoned} is removed: it was left behind by an upload that was cut off"]


def test_files_of_others_stay(folder: DropFolder) -> None:
    for name in (".a.tmp", ".0123456789abcdef.tmp", ".edged-0123.tmp", "edged-0123456789abcdef.tmp"):
        (folder.root / "m" / name).touch()
    temporary_in(folder.root / "m").mkdir()
    temporary_in(folder.root / "m").symlink_to(folder.root / "m" / ".a.tmp")
    assert folder.scan().temporaries == {}


def test_what_cannot_be_removed_is_logged_and_tried_again_as_late(
    folder: DropFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    abandoned, temporaries = temporary_in(folder.root), Temporaries(abandoned_s=10.0)
    abandoned.touch()

    def refuse(path: Path, *, missing_ok: bool) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        for now in (0.0, 10.0, 11.0, 20.9):
            temporaries.remove_abandoned(folder.scan().temporaries, now)
    assert caplog.messages == [
        f"cannot remove {abandoned}, left behind by an upload that was cut off: Operation not permitted"
    ]
    temporaries.remove_abandoned(folder.scan().temporaries, 21.0)
    assert not abandoned.exists()
