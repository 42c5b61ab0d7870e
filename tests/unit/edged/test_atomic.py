import os
import stat
from pathlib import Path

import pytest

from edged.atomic import (
    as_state_error,
    fsync_tree,
    rename_into_place,
    replace_symlink,
    temporary_sibling,
    write_atomic,
)
from edged.errors import StateError


def test_write_atomic_replaces_the_file_and_leaves_nothing_next_to_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
        write_atomic(tmp_path / "private", b"", 0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_full_disk_keeps_the_old_contents(full_disk: Path) -> None:
    path = full_disk / "file"
    write_atomic(path, b"old")
    with pytest.raises(StateError, match=r"cannot write .*file: No space left on device; free space"):
        write_atomic(path, b"x" * 2**20)
    assert path.read_bytes() == b"old"
    assert list(full_disk.iterdir()) == [path]


def test_a_missing_folder_raises_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file or directory"):
        write_atomic(tmp_path / "missing" / "file", b"")


def test_rename_into_place_never_replaces(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with pytest.raises(StateError, match="already exists"):
        rename_into_place(source, target)
    target.rmdir()
    target.symlink_to("nowhere")
    with pytest.raises(StateError, match="already exists"):
        rename_into_place(source, target)
    rename_into_place(source, tmp_path / "free")
    assert (tmp_path / "free").is_dir()
    assert not source.exists()


def test_replace_symlink_creates_and_moves_a_link_and_removes_leftovers(tmp_path: Path) -> None:
    link = tmp_path / "current"
    replace_symlink(link, "gen/1")
    (tmp_path / ".current.tmp").symlink_to("gen/crashed")
    replace_symlink(link, "gen/2")
    assert str(link.readlink()) == "gen/2"
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_temporary_siblings_are_hidden_unique_and_in_the_same_folder(tmp_path: Path) -> None:
    names = {temporary_sibling(tmp_path / "x") for _ in range(20)}
    assert len(names) == 20
    assert all(path.parent == tmp_path and path.name.startswith(".x.") for path in names)


def test_fsync_tree_skips_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "a" / "loop").symlink_to("..")
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "a" / "pipe")
    fsync_tree(tmp_path)


def test_only_os_errors_become_state_errors(tmp_path: Path) -> None:
    with pytest.raises(KeyError), as_state_error(tmp_path):
        raise KeyError
