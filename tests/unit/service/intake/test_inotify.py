import queue
import shutil

import pytest

from service.intake.inotify import Watches, is_network_folder

EVENT_S = 10  # at most; events come within milliseconds


@pytest.fixture
def events():
    return queue.Queue()


@pytest.fixture
def watches(events):
    opened = Watches(events.put)
    yield opened
    opened.close()


def drain(events):
    """Nothing is left over from before."""
    while True:
        try:
            events.get(timeout=0.2)
        except queue.Empty:
            return


def renamed(events):
    while (path := events.get(timeout=EVENT_S)) is None:
        pass
    return path


def test_a_closed_file_is_told(watches, events, tmp_path):
    assert watches.ensure([tmp_path])
    (tmp_path / "a").write_bytes(b"x")
    assert events.get(timeout=EVENT_S) is None


def test_a_rename_is_told_with_its_name_wherever_it_comes_from(watches, events, tmp_path):
    inside, outside = tmp_path / "watched", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    watches.ensure([inside])
    (inside / ".a.tmp").write_bytes(b"x")
    (inside / ".a.tmp").rename(inside / "a")
    assert renamed(events) == inside / "a"
    (outside / "b").write_bytes(b"x")
    (outside / "b").rename(inside / "b")
    assert renamed(events) == inside / "b"


def test_a_rename_out_of_the_folder_is_no_rename_into_it(watches, events, tmp_path):
    inside = tmp_path / "watched"
    inside.mkdir()
    (inside / "a").write_bytes(b"x")
    watches.ensure([inside])
    (inside / "a").rename(tmp_path / "a")
    (inside / "b").write_bytes(b"x")
    assert events.get(timeout=EVENT_S) is None


def test_a_folder_that_was_removed_and_created_again_is_watched_again(watches, events, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    assert watches.ensure([tmp_path, folder])
    shutil.rmtree(folder)
    assert not watches.ensure([tmp_path, folder])
    folder.mkdir()
    assert watches.ensure([tmp_path, folder])
    assert watches.rebuilds == 1
    drain(events)
    (folder / "a").write_bytes(b"x")
    assert events.get(timeout=EVENT_S) is None


def test_a_replaced_folder_is_noticed_without_a_look_in_between(watches, events, tmp_path):
    folder, other = tmp_path / "m", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    assert watches.ensure([folder])
    folder.rename(tmp_path / "old")
    other.rename(folder)
    assert watches.ensure([folder])
    assert watches.rebuilds == 1
    drain(events)
    (folder / "a").write_bytes(b"x")
    assert events.get(timeout=EVENT_S) is None


def test_a_folder_that_is_not_asked_for_any_more_is_left_alone(watches, events, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    watches.ensure([one, two])
    watches.ensure([one])
    drain(events)
    (two / "a").write_bytes(b"x")
    (one / ".b").write_bytes(b"x")
    (one / ".b").rename(one / "b")
    assert renamed(events) == one / "b"
    assert watches.rebuilds == 0


MOUNTS = r"""rootfs / rootfs rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/export /mnt/models nfs4 rw 0 0
//server/share /mnt/with\040blank cifs rw 0 0
tmpfs /mnt/models/local tmpfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/srv/drop", False),
        ("/mnt/models", True),
        ("/mnt/models/drop", True),
        ("/mnt/modelsother", False),
        ("/mnt/models/local/drop", False),
        ("/mnt/with blank/drop", True),
    ],
)
def test_network_filesystems_are_recognized(path, network):
    from pathlib import Path

    assert is_network_folder(Path(path), MOUNTS) is network


def test_this_machine_has_a_table_of_mounts(tmp_path):
    assert is_network_folder(tmp_path) in (True, False)
