from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from edged.calibration.folder import label_path
from edged.calibration.yolo_labels import (
    CLIPPED,
    OUTLINES,
    OUTSIDE,
    REPEATED,
    parse_labels,
    read_labels,
)
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


def sides(*lines):
    return parse_labels("\n".join(lines), "a").boxes.tolist()


def repairs(*lines):
    return parse_labels("\n".join(lines), "a").repairs


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.5 0.5 1.01 1.0", [0, 0, 1, 1]),
        ("0 0.9375 0.5 0.25 0.5", [0.8125, 0.25, 1, 0.75]),  # over the right edge, as after a careless crop
        ("0 0 0 0.5 0.5", [0, 0, 0.25, 0.25]),
        ("0 -0.125 0.5 0.5 0.5", [0, 0.25, 0.125, 0.75]),  # its center is outside
        ("0 0.5 0.5 2 2", [0, 0, 1, 1]),
        ("0 -0.5 0.25 0.5 0.25 0.5 1.5", [0, 0.25, 0.5, 1]),  # an outline
    ],
)
def test_boxes_over_the_edge_are_clipped(line, box):
    assert sides(line) == [box]
    assert repairs("1 0.5 0.5 0.1 0.1", line)[CLIPPED] == [2]


def test_rounding_is_not_called_clipping():
    assert repairs("0 0.5 0.5 1.0000001 1") == {}
    assert repairs("0 0.5 0.5 0 0") == {}  # a point stays, as in training


def test_a_box_outside_of_the_image_does_not_count():
    assert sides("0 1.5 0.5 0.5 0.5", "0 0.5 0.5 0.5 0.5") == [[0.25, 0.25, 0.75, 0.75]]
    assert repairs("0 1.5 0.5 0.5 0.5") == {OUTSIDE: [1]}


def test_equal_lines_count_once():
    lines = ("3 0.5 0.5 0.5 0.5", "3 0.50 0.5 5e-1 .5", "4 0.5 0.5 0.5 0.5", "3 0.5 0.5 0.5 0.5000001")
    boxes = parse_labels("\n".join(lines), "a")
    assert boxes.classes.tolist() == [3, 4, 3]
    assert boxes.lines == (1, 3, 4)
    assert boxes.repairs == {REPEATED: [2]}
    outline = "3 .25 .25 .75 .25 .75 .75"
    assert parse_labels(f"{outline}\n{lines[0]}", "a").repairs == {OUTLINES: [1], REPEATED: [2]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", ", class 0: 4 numbers; give 5"),
        ("7 0.5 0.5 0.1 0.1 0.9", ", class 7: 6 numbers; .*is the last one a confidence?"),
        ("cat 0.5 0.5 0.1 0.1", ": a field is not a number"),
        ("-1 0.5 0.5 0.1 0.1", ": class '-1' is not a class index"),
        ("1.5 0.5 0.5 0.1 0.1", ": class '1.5' is not a class index"),
        ("nan 0.5 0.5 0.1 0.1", ": class 'nan'"),
        ("0 0.5 0.5 2.1 0.1", ", class 0: the box extends far beyond the image"),
        ("0 0.5 0.5 nan 0.1", ", class 0: the box extends far beyond the image"),
        ("0 0.5 0.5 -0.1 0.1", ", class 0: the box has a negative side"),
        ("2 320 240 64 48", ", class 2: the box extends far beyond the image; give shares of its sides"),
    ],
)
def test_errors_state_the_line_the_class_and_the_reason(line, message):
    with pytest.raises(CalibrationError, match=f"a.txt, line 2{message}"):
        parse_labels(f"0 0.5 0.5 0.1 0.1\n{line}\n", "a.txt")


@given(st.text() | st.lists(st.floats() | st.integers()).map(lambda values: " ".join(map(str, values))))
def test_any_text_gives_boxes_or_an_error(text):
    try:
        boxes = parse_labels(text, "a.txt")
    except CalibrationError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most texts raise an error, some do not
        return
    assert ((boxes.boxes >= 0) & (boxes.boxes <= 1)).all()
    assert len(boxes.lines) == len(boxes.classes) == len(boxes.boxes)


share = st.integers(0, 1000).map(lambda value: value / 1000)
row = st.tuples(st.integers(0, 5), share, share, share, share)


@given(st.lists(row, max_size=20), st.randoms(use_true_random=False))
def test_valid_labels_are_those_that_training_sees(rows, random):
    """The oracle is what YOLOv5 does: unique rows of float32, then corners clipped to the image."""
    rows = [*rows, *random.sample(rows, len(rows) // 2)]
    text = "\n".join(" ".join(map(str, values)) for values in rows)
    expected = np.unique(np.array(rows, np.float32).reshape(-1, 5), axis=0)
    x, y, wide, high = expected[:, 1:].T
    corners = np.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], 1).clip(0, 1)
    boxes = parse_labels(text, "a")
    found = np.concatenate([boxes.classes[:, None].numpy(), boxes.boxes.numpy()], 1)
    order = [np.lexsort(table.T[::-1].round(5)) for table in (found, np.concatenate([expected[:, :1], corners], 1))]
    np.testing.assert_allclose(
        found[order[0]], np.concatenate([expected[:, :1], corners], 1)[order[1]], atol=1e-5, strict=False
    )


@given(st.lists(row, min_size=1, max_size=8), st.floats(-0.9, 0.9), st.floats(-0.9, 0.9))
def test_what_is_clipped_is_the_part_within_the_image(rows, right, down):
    moved = [(kind, x + right, y + down, wide, high) for kind, x, y, wide, high in rows]
    boxes = parse_labels("\n".join(" ".join(map(repr, values)) for values in moved), "a").boxes.tolist()
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 <= x2 <= 1
        assert 0 <= y1 <= y2 <= 1
        assert any(
            x1 >= x - wide / 2 - 1e-6 and x2 <= x + wide / 2 + 1e-6 and y1 >= y - high / 2 - 1e-6
            for _, x, y, wide, high in moved
        )


def test_images_without_a_label_file_have_no_boxes(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b.txt").write_text("1 0.5 0.5 1 1")
    labels = read_labels(tmp_path, ["images/a.jpg", "images/b.jpg"])
    assert [len(entry.classes) for entry in labels.boxes] == [0, 1]
    assert labels.notes() == []
    assert labels
    assert read_labels(tmp_path, ["images/a.jpg"]) is None


def test_a_bad_line_leaves_its_image_out_and_is_said_once_a_folder(tmp_path):
    contents = {
        "a": b"0 0.5 0.5 0.1 0.1\n",
        "b": b"0 0.5 0.5 0.1 0.1\n3 0.5 0.5 0.1\n",
        "c": b"\xff\xfe0",
        "d": b"0" * ((1 << 20) + 1),
        "e": b"cat 0.5 0.5 0.1 0.1",
        "f": b"0 0.5 0.5 0.1 0.1\n" * 10_001,
        "g": b"\xef\xbb\xbf0 0.5 0.5 1.5 1.5\r\n0 0.5 0.5 1.5 1.5\r\n",
        "h": b"\n1 0.9 0.5 0.4 0.5\n1 .1 .2 .3 .1 .2 .5",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    labels = read_labels(tmp_path, [f"{name}.jpg" for name in contents])
    assert [boxes is not None for boxes in labels.boxes] == [True, False, False, False, False, False, True, True]
    folder = tmp_path.name
    assert labels.notes() == [
        f"5 images are left out for their labels: {folder}/b.txt, line 2, class 3: 4 numbers; give 5, or a class and at"
        f" least 3 points; {folder}/c.txt is not text; give one line '<class> x y w h' per box; {folder}/d.txt is"
        " larger than 1048576 bytes; and 2 more",
        f"2 boxes over the edge are clipped (first: {folder}/g.txt, line 1); 1 repeated line counts once (first:"
        f" {folder}/g.txt, line 2); 1 outline became a box (first: {folder}/h.txt, line 3)",
    ]


def test_classes_that_the_model_lacks_are_named_with_file_and_line(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n\n7 0.5 0.5 0.1 0.1\n2 0.1 0.1 0.1 0.1")
    (tmp_path / "b.txt").write_text("9 0.5 0.5 0.1 0.1")
    (tmp_path / "c.txt").write_text("1 0.5 0.5 0.1 0.1")
    labels = read_labels(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    assert labels.misfit(10) is None
    assert labels.misfit(3) == (
        f"2 boxes in 2 files of classes that the model lacks, such as class 7 in {tmp_path.name}/a.txt, line 3;"
        " the model has the classes 0 to 2"
    )


def test_few_images_with_a_class_that_the_model_lacks_are_left_out(tmp_path):
    for index in range(20):
        (tmp_path / f"{index:02}.txt").write_text("1 0.5 0.5 0.1 0.1")
    (tmp_path / "07.txt").write_text("1 0.5 0.5 0.1 0.1\n9 0.5 0.5 0.1 0.1")
    labels = read_labels(tmp_path, [f"{index:02}.jpg" for index in range(20)])
    assert labels.of_model(10) is labels
    fitting = labels.of_model(3)
    assert [index for index, boxes in enumerate(fitting.boxes) if boxes is None] == [7]
    assert fitting.misfit(3) is None
    assert fitting.notes() == [
        f"1 image is left out for its labels: {tmp_path.name}/07.txt, line 2: class 9 is none of the model's, which are"
        " 0 to 2"
    ]
    assert labels.of_model(1) is labels  # most are of other classes: they are labels of another model
    assert labels.of_model(1).misfit(1) is not None


def test_a_name_with_a_line_break_stays_in_one_line(tmp_path):
    (tmp_path / "a\nb.txt").write_text("x")
    [note] = read_labels(tmp_path, ["a\nb.jpg"]).notes()
    assert "\n" not in note
    assert not read_labels(tmp_path, ["a\nb.jpg"])
