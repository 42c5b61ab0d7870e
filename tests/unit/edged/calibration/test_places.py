"""Folders, data.yaml files and text files as the place of images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.calibration import places
from edged.calibration.dataset import build_cache
from edged.calibration.folder import scan
from edged.calibration.places import CALIBRATE, EVALUATE, find_images, is_list
from edged.errors import CalibrationError
from edged.spec import InputSpec
from tests.support.pictures import write_folder, write_png


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_yaml(place: Path, /, **keys: object) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump(keys))
    return place


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A data set as YOLOv5's tutorial has it: checkout and datasets side by side."""
    touch(tmp_path / "datasets" / "coco", "images/train/a.jpg", "images/train/b.JPG", "images/val/c.png", "x.gif")
    return tmp_path


def test_a_folder_is_as_it_was(coco: Path) -> None:
    folder = coco / "datasets" / "coco"
    assert find_images(folder) == scan(folder)
    assert find_images(folder).files == ("images/train/a.jpg", "images/train/b.JPG", "images/val/c.png")
    (coco / "folder.yaml").mkdir()
    assert not is_list(coco / "folder.yaml")


@pytest.mark.parametrize("path", ["../datasets/coco", None, "absolute"])
def test_calibration_takes_train_and_evaluation_val(coco: Path, path: str | None) -> None:
    root = coco / "datasets" / "coco"
    keys: dict[str, object] = {"train": "images/train", "val": "images/val", "download": "rm -rf /", "nc": 2}
    if path is not None:
        keys["path"] = str(root) if path == "absolute" else path
    place = write_yaml((coco / "yolov5" / "data.yaml") if path else root / "data.yaml", **keys)
    found = find_images(place, CALIBRATE)
    assert (found.root, found.files, found.split) == (root / "images" / "train", ("a.jpg", "b.JPG"), "train")
    found = find_images(place, EVALUATE)
    assert (found.root, found.files, found.split) == (root / "images" / "val", ("c.png",), "val")


@pytest.mark.parametrize(
    ("keys", "use", "split"),
    [
        ({"val": "images/val"}, CALIBRATE, "val"),
        ({"train": "", "val": "images/val"}, CALIBRATE, "val"),
        ({"train": "images/train", "test": "images/val"}, EVALUATE, "test"),
    ],
)
def test_another_split_where_the_usual_one_is_missing(coco: Path, keys: dict[str, str], use: str, split: str) -> None:
    place = write_yaml(coco / "datasets" / "coco" / "data.yaml", **keys)
    assert find_images(place, use).split == split


def test_evaluation_never_takes_the_images_of_training(coco: Path) -> None:
    place = write_yaml(coco / "datasets" / "coco" / "data.yaml", train="images/train")
    with pytest.raises(CalibrationError, match="has no images under 'val' or 'test'"):
        find_images(place, EVALUATE)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("yolov5/data/coco.yaml", "../datasets/coco"),  # as in the checkout, relative to its root
        ("datasets/coco/data.yaml", "../datasets/coco"),  # moved into the data set
        ("datasets/coco/data.yaml", "/content/drive/images"),  # made on another machine, moved into the data set
        ("datasets/coco/data.yaml", "."),
    ],
)
def test_a_path_is_found_where_users_have_the_file(coco: Path, place: str, path: str) -> None:
    found = find_images(write_yaml(coco / place, path=path, train="images/train", val="images/val"))
    assert found.root == coco / "datasets" / "coco" / "images" / "train"


def test_exports_whose_splits_begin_with_a_step_up(coco: Path) -> None:
    """Roboflow writes ../train/images for a folder that is next to the file."""
    touch(coco / "export", "train/images/a.jpg")
    place = write_yaml(coco / "export" / "data.yaml", train="../train/images", val="../valid/images")
    assert find_images(place).root == coco / "export" / "train" / "images"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], ("cat", "dog")),
        ({0: "cat", 1: "dog"}, ("cat", "dog")),
        ({1: "dog", 0: "cat"}, ("cat", "dog")),
        ([1, 0.5], ("1", "0.5")),
        (None, None),
    ],
)
def test_names_are_a_list_or_a_mapping(coco: Path, names: object, expected: object) -> None:
    place = write_yaml(coco / "datasets" / "coco" / "data.yaml", train="images/train", names=names)
    assert find_images(place).names == expected


def test_several_folders_and_lists_are_one_set(coco: Path) -> None:
    root = coco / "datasets" / "coco"
    (root / "more.txt").write_text("./images/val/c.png\nimages/train/a.jpg\n")
    place = write_yaml(root / "data.yaml", train=["images/train", "more.txt"])
    found = find_images(place)
    assert (found.root, found.files) == (root, ("images/train/a.jpg", "images/train/b.JPG", "images/val/c.png"))


def test_a_list_is_relative_to_its_own_folder_and_counts_what_is_missing(coco: Path, tmp_path: Path) -> None:
    root = coco / "datasets" / "coco"
    lines = ["./images/train/a.jpg", "", "images/val/c.png", str(root / "images/train/b.JPG"), "x.gif", "a.jpg"]
    (root / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "b.jpg", "c.jpg", "d.jpg"]).encode())
    found = find_images(root / "train.txt")
    assert found.files == ("images/train/a.jpg", "images/train/b.JPG", "images/val/c.png")
    assert found.others == {".gif": 1}
    [missing] = found.skipped
    assert missing.path == "train.txt"
    assert missing.reason == "names 4 of 8 images that do not exist: 'a.jpg', 'b.jpg', 'c.jpg', ..."
    assert found.root == root
    assert find_images(Path(os.path.relpath(root / "train.txt"))).files == found.files


def test_files_outside_of_the_root_have_absolute_paths(coco: Path) -> None:
    (coco / "lists").mkdir()
    (coco / "lists" / "all.txt").write_text("../datasets/coco/images/val/c.png\n")
    found = find_images(coco / "lists" / "all.txt")
    assert found.files == (str(coco / "datasets/coco/images/val/c.png"),)
    assert (found.root / found.files[0]).is_file()


def test_a_list_of_class_folders_has_labels(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", classes=2, images=2)
    (tmp_path / "data" / "all.txt").write_text("\n".join(scan(tmp_path / "data").files))
    assert find_images(tmp_path / "data" / "all.txt").classes == ("class_0", "class_1")


def test_a_name_that_is_not_unicode_can_be_listed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_png(tmp_path / name, 1)
    (tmp_path / "all.txt").write_bytes(os.fsencode(name))
    assert find_images(tmp_path / "all.txt").files == (name,)


def test_a_cache_of_the_folder_serves_its_data_yaml(tmp_path: Path) -> None:
    """The key is what is in the images, not the way in which they are named."""
    write_folder(tmp_path / "data" / "images", classes=0, images=40)
    place = write_yaml(tmp_path / "data" / "data.yaml", train="images", names=["a"])
    (tmp_path / "data" / "list.txt").write_text("\n".join(f"./images/image_{i:04}.png" for i in range(40)))
    spec, caches = InputSpec(16, 16), tmp_path / "caches"
    plain = build_cache(tmp_path / "data" / "images", caches, spec)
    named = build_cache(place, caches, spec)
    assert (named.digest, named.directory) == (plain.digest, plain.directory)
    assert (named.names, named.split, plain.names, plain.split) == (("a",), "train", None, None)
    listed = build_cache(tmp_path / "data" / "list.txt", caches, spec)
    assert listed.root == tmp_path / "data"
    assert sorted(listed.files) == [f"images/{file}" for file in sorted(plain.files)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no keys"),
        ("- a", "has no keys"),
        ("names: [a]", "has no images under 'train' or 'val'"),
        ("train: nowhere", "train names 'nowhere', and there is no .*nowhere"),
        ("train: [images/train, nowhere]", "and there is no"),
        ("train: 3", "train is no path"),
        ("train: [3]", "train is no path"),
        ("train: {a: b}", "train is no path"),
        ("path: [a]\ntrain: images/train", "path is a list"),
        ("train: images/train/a.jpg", "which is no folder of images and no .txt list"),
        ("train: images/train\nnames: cat", "names must be a list"),
        ("train: images/train\nnames: {0: a, 2: b}", "names must be a list"),
        ("train: images/train\nnames: [[a]]", "names must be a list"),
        ("train: images/train\nnames: [0x" + "f" * 9000 + "]", "a number of thousands of digits"),
        ("train: !!python/object/apply:os.system [id]", r"line 1 is not YAML: could not determine a constructor"),
        ("train: [", "line 1 is not YAML"),
        ("train: \x00", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\ntrain: *c", "train is no path"),
        ("train: " + "9" * 5000, "is not YAML"),
        ("#" * (1 << 20) + "\n", "is larger than 1048576 bytes"),
    ],
    ids=range(21),
)
def test_impossible_files_are_refused_in_one_line(coco: Path, text: str, reason: str) -> None:
    place = coco / "datasets" / "coco" / "data.yaml"
    place.write_text(text)
    with pytest.raises(CalibrationError, match=reason) as caught:
        find_images(place)
    assert "\n" not in str(caught.value)
    assert str(place) in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_bounds_of_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x.jpg\n" * 20)
    monkeypatch.setattr(places, "MAX_LINES", 10)
    with pytest.raises(CalibrationError, match="has 21 lines; at most 10 are allowed"):
        find_images(tmp_path / "a.txt")
    monkeypatch.setattr(places, "MAX_LIST_BYTES", 100)
    with pytest.raises(CalibrationError, match="is larger than 100 bytes"):
        find_images(tmp_path / "a.txt")
    with pytest.raises(CalibrationError, match=r"gone.txt cannot be read: No such file"):
        find_images(tmp_path / "gone.txt")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_images_or_an_error(tmp_path: Path, data: bytes) -> None:
    for name in ("data.yaml", "list.txt"):
        (tmp_path / name).write_bytes(data)
        try:
            found = find_images(tmp_path / name)
        except CalibrationError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most data raise an error, some do not
        else:
            assert found.files == ()
