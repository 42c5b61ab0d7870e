from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from edged.calibration.yolo_labels import label_path, parse_labels, read_labels
from edged.errors import CalibrationError


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("data/images/a.jpg", "data/labels/a.txt"),
        ("data/images/train/a.b.png", "data/labels/train/a.b.txt"),
        ("images/x/images/a.jpg", "images/x/labels/a.txt"),
        ("data/a.jpg", "data/a.txt"),
        ("data/images", "data/images.txt"),
    ],
)
def test_label_path_follows_the_images_folder(image, labels):
    assert label_path(Path(image)) == Path(labels)


def test_boxes_and_outlines():
    boxes = parse_labels("3 0.5 0.4 0.2 0.4\n\n7 .1 .2 .3 .1 .2 .5\n", "a.txt")
    assert boxes.classes.tolist() == [3, 7]
    assert_close(boxes.boxes, torch.tensor([[0.4, 0.2, 0.6, 0.6], [0.1, 0.1, 0.3, 0.5]]))
    assert_close(boxes.in_pixels(100, 200)[0], torch.tensor([40.0, 40.0, 60.0, 120.0]))


def test_an_empty_file_has_no_boxes():
    boxes = parse_labels(" \n", "a.txt")
    assert boxes.boxes.shape == (0, 4)
    assert boxes.classes.dtype is torch.int64


def test_boxes_slightly_outside_the_image_are_clipped():
    assert parse_labels("0 0.5 0.5 1.01 1.0", "a").boxes.tolist() == [[0.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "4 numbers; give 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers"),
        ("cat 0.5 0.5 0.1 0.1", "a field is not a number"),
        ("-1 0.5 0.5 0.1 0.1", "class '-1' is not a class index"),
        ("1.5 0.5 0.5 0.1 0.1", "class '1.5' is not a class index"),
        ("nan 0.5 0.5 0.1 0.1", "class 'nan'"),
        ("0 0.5 0.5 2 0.1", "extends beyond the image"),
        ("0 0.5 0.5 nan 0.1", "extends beyond the image"),
        ("0 0.5 0.5 -0.1 0.1", "extends beyond the image"),
        ("0 320 240 64 48", "extends beyond the image; give shares of its sides"),
    ],
)
def test_errors_state_the_line_and_the_reason(line, message):
    with pytest.raises(CalibrationError, match=f"labels a.txt, line 2: .*{message}"):
        parse_labels(f"0 0.5 0.5 0.1 0.1\n{line}\n", "a.txt")


@given(st.text() | st.lists(st.floats() | st.integers()).map(lambda values: " ".join(map(str, values))))
def test_any_text_gives_boxes_or_an_error(text):
    try:
        boxes = parse_labels(text, "a.txt")
    except CalibrationError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most texts raise an error, some do not
        return
    assert ((boxes.boxes >= 0) & (boxes.boxes <= 1)).all()


def test_images_without_a_label_file_have_no_boxes(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b.txt").write_text("1 0.5 0.5 1 1")
    labels = read_labels(tmp_path, ["images/a.jpg", "images/b.jpg"])
    assert [len(entry.classes) for entry in labels] == [0, 1]
    assert read_labels(tmp_path, ["images/a.jpg"]) is None


def test_unreadable_files_raise_an_error_with_their_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CalibrationError, match=r"a.txt are not ASCII text"):
        read_labels(tmp_path, ["a.jpg"])
    (tmp_path / "a.txt").write_bytes(b"0" * ((1 << 20) + 1))
    with pytest.raises(CalibrationError, match="larger than 1048576 bytes"):
        read_labels(tmp_path, ["a.jpg"])
