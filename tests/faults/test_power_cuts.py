"""What a disk may hold after a power cut, which is replayed from the system calls of a program."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.crashes.power import TRACED, Disk, Kept
from benchmarks.crashes.power_cuts import Recording, differences, try_cuts
from benchmarks.crashes.scenario import Bases
from tests.support.syscall_faults import command_prefix, missing, operations
from tests.support.tasks import Task

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

ATOMIC = """
import sys
from pathlib import Path
from edged.atomic import fsync_tree, rename_into_place, replace_symlink, write_atomic
folder = Path(sys.argv[1])
write_atomic(folder / "file", b"new" * 1000)
(folder / "half").mkdir()
(folder / "half" / "content").write_bytes(b"content")
fsync_tree(folder / "half")
rename_into_place(folder / "half", folder / "whole")
replace_symlink(folder / "link", "whole")
"""
CLAIM = """
import sys
from pathlib import Path
from service.intake.claim import claim
claim(Path(sys.argv[1], "drop", "a.pt"), Path(sys.argv[1], "claimed"))
"""
CARELESS = """
import os, sys
with open(f"{sys.argv[1]}/new", "wb") as file:
    file.write(b"new")
os.rename(f"{sys.argv[1]}/new", f"{sys.argv[1]}/file")
"""


def left(folder: Path, program: str) -> set[tuple[bytes, tuple[bytes, ...] | None, str]]:
    """Return what a power cut may leave: of the file, of the whole folder, and of the link."""
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    (folder / "link").symlink_to("nothing")
    disk, log, state = Disk(folder), folder.with_name("log"), folder.with_name("cut")
    prefix = command_prefix(log, calls=TRACED, bytes_shown=10_000)
    subprocess.run([*prefix, sys.executable, "-c", program, str(folder)], check=True)
    found = set()
    for operation in operations(log):
        if disk.replay(operation):
            for kept in Kept:
                disk.write(state, kept)
                whole = state / "whole"
                contents = tuple(path.read_bytes() for path in whole.iterdir()) if whole.exists() else None
                found.add(((state / "file").read_bytes(), contents, str((state / "link").readlink())))
                shutil.rmtree(state)
    disk.write(state, None)
    seen = subprocess.run(["diff", "-r", "--no-dereference", folder, state], capture_output=True, check=False)
    assert seen.stdout == b""  # replayed to the end, it is what the program has left
    return found


def test_atomic_writes_leave_the_old_or_the_new(tmp_path: Path) -> None:
    found = left(tmp_path / "folder", ATOMIC)
    assert {file for file, _, _ in found} == {b"old", b"new" * 1000}
    assert {whole for _, whole, _ in found} == {None, (b"content",)}
    assert {link for _, _, link in found} == {"nothing", "whole"}


def test_a_write_that_is_not_synced_may_leave_an_empty_file(tmp_path: Path) -> None:
    """The control."""
    assert (b"", None, "nothing") in left(tmp_path / "folder", CARELESS)


def test_a_replay_that_does_not_end_as_the_update_did_is_told(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
        (folder / "file").write_bytes(b"old")
    recording = Recording(before, after, [])
    assert differences(Disk(before), recording, tmp_path) == []
    (after / "file").write_bytes(b"new")
    (told,) = differences(Disk(before), recording, tmp_path)
    assert "the disk is not the real one" in told


def test_a_claimed_file_is_whole_in_one_of_two_places_and_in_the_end_only_in_one(tmp_path: Path) -> None:
    folder, log, state = tmp_path / "folder", tmp_path / "log", tmp_path / "cut"
    source, claimed = Path("drop/a.pt"), Path("claimed", hashlib.sha256(b"weights").hexdigest(), "file")
    for path in (folder / source, folder / claimed.parts[0]):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / claimed.parts[0]).mkdir()
    (folder / source).write_bytes(b"weights")
    disk = Disk(folder)
    command = [*command_prefix(log, calls=TRACED, bytes_shown=100), sys.executable, "-c", CLAIM, str(folder)]
    subprocess.run(command, check=True)
    for operation in operations(log):
        for kept in Kept if disk.replay(operation) else ():
            disk.write(state, kept)
            found = [(state / path).read_bytes() for path in (source, claimed) if (state / path).exists()]
            assert b"weights" in found, (operation, kept)
            shutil.rmtree(state)
    for kept in Kept:
        disk.write(state, kept)
        assert not (state / source).exists(), kept
        shutil.rmtree(state)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_power_cut_at_any_write_of_an_update(task: Task, tmp_path: Path) -> None:
    for cuts in try_cuts(Bases(tmp_path / "bases", task), tmp_path, starts=1):
        assert cuts.broken == [], cuts.kept
        assert cuts.disks > 10
