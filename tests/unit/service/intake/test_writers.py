"""Files that are open for writing."""

from __future__ import annotations

import os
from pathlib import Path

from service.intake.writers import being_written


def test_a_file_is_being_written_while_a_process_has_it_open_for_that(tmp_path: Path) -> None:
    written, read, closed, gone = (tmp_path / name for name in ("written", "read", "closed", "gone"))
    for path in (written, read, closed):
        path.write_bytes(b"x")
    with written.open("ab"), read.open("rb"):
        assert being_written([written, read, closed, gone]) == {written}
        for mode in (os.O_WRONLY, os.O_RDWR):
            descriptor = os.open(read, mode)
            assert being_written([read]) == {read}
            os.close(descriptor)
    assert being_written([written, read, closed]) == set()
    assert being_written([]) == set()


def test_another_name_of_the_file_is_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb"):
        os.link(path, tmp_path / "b")
        assert being_written([tmp_path / "b"]) == {tmp_path / "b"}


def test_what_cannot_be_read_of_proc_counts_as_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb"):
        assert being_written([path], proc=tmp_path / "nowhere") == set()
        descriptors = tmp_path / "proc" / "1" / "fd"
        descriptors.mkdir(parents=True)
        (descriptors / "3").symlink_to(path)  # without its fdinfo
        assert being_written([path], proc=tmp_path / "proc") == set()
