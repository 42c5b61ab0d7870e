"""Whether the state folder is still the one that was opened."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from service.storage.identity import StateIdentity
from service.storage.paths import Paths
from service.storage.state_lock import lock_state


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "state")
    paths.make()
    lock_state(paths.lock).close()
    return paths


def test_a_folder_that_stays_is_no_problem(paths: Paths) -> None:
    identity = StateIdentity(paths)
    (paths.root / "journal.db").write_bytes(b"")
    assert identity.problem() is None


def test_a_folder_that_goes_and_comes_back(paths: Paths) -> None:
    identity = StateIdentity(paths)
    away = paths.root.rename(paths.root.with_name("away"))
    assert f"state_dir {paths.root} is gone: " in (identity.problem() or "")
    away.rename(paths.root)
    assert identity.problem() is None


def test_another_folder_in_its_place(paths: Paths) -> None:
    identity = StateIdentity(paths)
    paths.root.rename(paths.root.with_name("away"))
    paths.make()
    problem = identity.problem() or ""
    assert f"state_dir {paths.root} was replaced by another folder: " in problem
    assert "\n" not in problem
    assert "restart edged" in problem


@pytest.mark.parametrize("name", ["lock", "models"])
def test_a_folder_that_was_emptied(name: str, paths: Paths) -> None:
    identity = StateIdentity(paths)
    path = paths.root / name
    path.rename(path.with_name("away"))
    assert f"{name} is gone from state_dir" in (identity.problem() or "")
    path.mkdir()
    assert f"{name} was replaced in state_dir" in (identity.problem() or "")


def forget() -> None:
    """Have the kernel forget files and folders that nobody has open; what was just used stays for a few times."""
    try:
        for _ in range(5):
            Path("/proc/sys/vm/drop_caches").write_text("2")
    except OSError as error:
        pytest.skip(f"the kernel takes no orders: {error}")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_on_an_overlay_a_folder_that_was_forgotten_is_the_same(tmp_path: Path) -> None:
    """As in a container; with the upper folder on a disk of its own, inode numbers of folders are not lasting."""
    for name in ("lower", "disk", "merged"):
        (tmp_path / name).mkdir()
    disk, merged = tmp_path / "disk", tmp_path / "merged"
    layers = f"xino=off,lowerdir={tmp_path / 'lower'},upperdir={disk / 'upper'},workdir={disk / 'work'}"
    mounts = [
        ["mount", "-t", "tmpfs", "tmpfs", disk],
        ["mkdir", disk / "upper", disk / "work"],
        ["mount", "-t", "overlay", "overlay", "-o", layers, merged],
    ]
    try:
        for command in mounts:
            if (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
                pytest.skip(f"cannot mount: {done.stderr}")
        paths = Paths(merged / "state")
        paths.make()
        before = paths.models.stat().st_ino
        identity = StateIdentity(paths)
        forget()
        assert identity.problem() is None
        del identity
        forget()
        assert paths.models.stat().st_ino != before  # the control
    finally:
        for folder in (merged, disk):
            subprocess.run(["umount", folder], capture_output=True)


def test_what_was_not_there_may_come(tmp_path: Path) -> None:
    identity = StateIdentity(Paths(tmp_path))
    (tmp_path / "models").mkdir()
    assert identity.problem() is None


def test_folders_that_hold_nothing_lasting_are_made_anew(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    identity = StateIdentity(paths)
    shutil.rmtree(paths.claimed)
    identity.mend()
    assert paths.claimed.is_dir()
    assert "claimed was removed; it is made anew" in caplog.text
    shutil.rmtree(paths.root)
    with pytest.raises(OSError, match="No such file"):
        identity.mend()
    assert not paths.root.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_folder_that_is_mounted_over_or_read_only(paths: Paths) -> None:
    identity = StateIdentity(paths)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", paths.root], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr}")
    try:
        assert "was replaced by another folder" in (identity.problem() or "")
        paths.make()
        on_mount = StateIdentity(paths)
        subprocess.run(["mount", "-o", "remount,ro", paths.root], check=True)
        assert "is read-only now" in (on_mount.problem() or "")
        subprocess.run(["mount", "-o", "remount,rw", paths.root], check=True)
        assert on_mount.problem() is None
        del on_mount  # it keeps the mount busy
    finally:
        subprocess.run(["umount", paths.root], check=True)
    assert identity.problem() is None
