import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.calibration.folder import ImageFolder, deal, scan, select
from edged.errors import CalibrationError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_are_found_by_suffix_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.JPEG", "deep/er/c.png", "d.webp", "e.BMP", "notes.txt", "README", "f.gif", "g.jpg.part")
    found = scan(tmp_path)
    assert found.files == ("a.JPEG", "b.jpg", "d.webp", "deep/er/c.png", "e.BMP")
    assert found.skipped == ()
    assert found.classes == ()


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, ".a.jpg", ".thumbs/b.jpg", "c.jpg")
    assert scan(tmp_path).files == ("c.jpg",)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    touch(data, "a/1.jpg")
    touch(elsewhere, "2.jpg")
    (data / "a" / "up").symlink_to("..")
    (data / "b").symlink_to(elsewhere)
    (data / "c.jpg").symlink_to(elsewhere / "2.jpg")
    (data / "self.jpg").symlink_to("self.jpg")
    (data / "gone.jpg").symlink_to("nowhere")
    found = scan(data)
    assert found.files == ("a/1.jpg", "b/2.jpg", "c.jpg")
    assert {(entry.path, entry.reason) for entry in found.skipped} == {
        ("gone.jpg", "is not a regular file"),
        ("self.jpg", "is not a regular file"),
    }


def test_a_pipe_with_an_image_name_is_skipped_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    assert scan(tmp_path).skipped[0].reason == "is not a regular file"


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat/1.jpg", "dog/2.jpg"], ("cat", "dog")),
        (["dog/1.jpg", "cat/2.jpg", "cat/labels.txt", "readme.md"], ("cat", "dog")),
        (["cat/1.jpg", "cat/2.jpg"], ()),  # one folder gives no labels
        (["cat/1.jpg", "dog/2.jpg", "3.jpg"], ()),  # an image outside the class folders
        (["train/cat/1.jpg", "val/dog/2.jpg"], ()),  # train and val are not classes
        (["images/1.jpg", "labels/1.txt"], ()),  # a detection data set
        ([], ()),
    ],
)
def test_labels_need_every_image_one_level_down_in_two_folders(
    tmp_path: Path, names: list[str], classes: tuple[str, ...]
) -> None:
    touch(tmp_path, *names)
    found = scan(tmp_path)
    assert found.classes == classes
    for file in found.files if classes else ():
        assert classes[found.label(file)] == file.split("/")[0]


def test_a_missing_folder_or_a_file_raises_an_error_with_its_path(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    for name in ("missing", "file"):
        with pytest.raises(CalibrationError, match=f"calibration folder {tmp_path / name} cannot be read"):
            scan(tmp_path / name)


sizes = st.lists(st.integers(1, 30), min_size=2, max_size=6)


def folder_of(counts: list[int]) -> ImageFolder:
    files = sorted(f"c{label}/{index}.jpg" for label, count in enumerate(counts) for index in range(count))
    return ImageFolder(tuple(files), tuple(f"c{label}" for label in range(len(counts))), ())


@given(sizes, st.integers(1, 100))
def test_select_reaches_its_limit_and_balances_every_prefix(counts: list[int], limit: int) -> None:
    images = folder_of(counts)
    chosen = select(images, limit)
    assert len(set(chosen)) == len(chosen) == min(limit, sum(counts))
    assert set(chosen) <= set(images.files)
    for end in range(len(chosen) + 1):
        taken = Counter(images.label(file) for file in chosen[:end])
        fullest = max(taken.values(), default=0)
        assert all(taken[label] >= min(count, fullest - 1) for label, count in enumerate(counts))


@given(sizes, st.integers(1, 50))
def test_select_is_repeatable_and_a_smaller_limit_is_a_prefix(counts: list[int], limit: int) -> None:
    images = folder_of(counts)
    assert select(images, limit) == select(images, None)[:limit]


def test_select_does_not_follow_the_order_of_names() -> None:
    images = ImageFolder(tuple(f"{index:03}.jpg" for index in range(100)), (), ())
    assert 30 < sum(int(file[:3]) for file in select(images, 40)) / 40 < 70


@given(st.lists(st.integers(0, 4), max_size=40))
def test_deal_is_a_permutation_that_keeps_the_order_within_a_class(labels: list[int]) -> None:
    order = deal(labels)
    assert sorted(order) == list(range(len(labels)))
    for label in set(labels):
        positions = [index for index in order if labels[index] == label]
        assert positions == sorted(positions)
