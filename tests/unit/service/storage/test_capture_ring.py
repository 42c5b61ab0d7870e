import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage.capture_ring import Ring

DAY = 86400.0


@pytest.fixture
def ring(tmp_path):
    return Ring(tmp_path / "capture" / "m", 3, 100, DAY)


def contents(ring):
    return [entry.path.read_bytes() for entry in ring.entries()]


def test_the_oldest_go_when_there_are_too_many(ring):
    for index in range(5):
        assert ring.add(b"%d" % index, ".png", 1000.0 + index)
    assert contents(ring) == [b"2", b"3", b"4"]
    assert [entry.at for entry in ring.entries()] == [1002.0, 1003.0, 1004.0]


def test_the_oldest_go_when_they_are_too_large(ring):
    ring.add(b"a" * 60, ".png", 1.0)
    ring.add(b"b" * 40, ".png", 2.0)
    assert len(contents(ring)) == 2
    ring.add(b"c", ".png", 3.0)
    assert contents(ring) == [b"b" * 40, b"c"]
    assert not ring.add(b"d" * 101, ".png", 4.0)
    assert contents(ring) == [b"b" * 40, b"c"]


def test_what_is_too_old_goes_without_anything_new(ring):
    ring.add(b"a", ".png", 0.0)
    ring.add(b"b", ".png", 10.0)
    assert ring.trim(DAY) == 0
    assert ring.trim(DAY + 1) == 1
    assert contents(ring) == [b"b"]
    assert ring.trim(3 * DAY) == 1
    assert ring.trim(3 * DAY) == 0


def test_nobody_else_can_read_them(ring):
    before = os.umask(0)
    try:
        ring.add(b"a", ".png", 1.0)
        ring.folder.chmod(0o755)  # somebody was careless; the next image mends it
        ring.add(b"b", ".png", 2.0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(ring.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.path.stat().st_mode) for entry in ring.entries()} == {0o600}


def test_purging_leaves_nothing(ring):
    ring.add(b"abc", ".png", 1.0)
    (ring.folder / ".half.tmp").write_bytes(b"x")
    assert [entry.bytes for entry in ring.purge()] == [3]
    assert not ring.folder.exists()
    assert ring.purge() == ring.entries() == []


def test_other_files_are_left_alone_by_all_else(ring):
    ring.add(b"a", ".png", 1.0)
    (ring.folder / "notes.txt").write_text("mine")
    ring.trim(10 * DAY)
    assert [path.name for path in ring.folder.iterdir()] == ["notes.txt"]


def test_a_disk_that_refuses_is_told_and_leaves_no_half_file(ring):
    ring.folder.parent.mkdir()
    ring.folder.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="exists"):
        ring.add(b"a", ".png", 1.0)


def test_it_travels_as_json(ring):
    assert Ring.from_dict(ring.to_dict()) == ring
    assert ring.to_dict()["folder"] == str(ring.folder)


@given(st.lists(st.tuples(st.integers(0, 3 * 86400), st.integers(0, 40)), max_size=12))
def test_its_bounds_hold_whatever_comes(tmp_path_factory, images):
    ring = Ring(tmp_path_factory.mktemp("ring"), 3, 100, DAY)
    now = 0.0
    for later, size in images:
        now += later
        ring.add(b"x" * size, ".jpg", now)
        entries = ring.entries()
        assert entries[-1].at == now
        assert len(entries) <= 3
        assert sum(entry.bytes for entry in entries) <= 100
        assert all(now - entry.at <= DAY for entry in entries)
