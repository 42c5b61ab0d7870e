from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from service.doctor.images import Images, find_images


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_images_are_known_by_their_first_bytes(tmp_path: Path, form: str) -> None:
    for index in range(32):
        (tmp_path / f"{index}.jpg").write_bytes(encoded(form))  # whatever their suffix
    assert find_images(tmp_path) == Images(32)


def test_an_empty_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("images are to come")
    problem = find_images(tmp_path).problem
    assert problem == (
        "has 0 usable images; put at least 32 there of what the model will see; 1,024 are enough, for a detector 128"
    )


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    for index in range(31):
        (tmp_path / f"{index:02}.png").write_bytes(encoded("PNG"))
    for name, contents in (("a.jpg", b""), ("b.jpg", b"<html>"), ("c.jpg", b"RIFF----WAVE"), ("d.jpg", b"x")):
        (tmp_path / name).write_bytes(contents)
    (tmp_path / "e.jpg").symlink_to("nowhere")
    found = find_images(tmp_path)
    assert (found.usable, len(found.unusable)) == (31, 5)
    assert found.problem is not None
    assert found.problem.startswith(
        "has 31 usable images (a.jpg is empty, b.jpg begins like no image, c.jpg begins like no image and 2 more); put"
    )


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    problem = find_images(tmp_path / "none").problem
    assert problem is not None
    assert "none cannot be read: No such file or directory" in problem


def test_files_of_other_types_are_counted(tmp_path: Path) -> None:
    for index in range(32):
        (tmp_path / f"{index:02}.jfif").write_bytes(encoded("MPO" if index else "JPEG"))
    for name in ("a.gif", "b.gif", "c.HEIC", "d.json", "classes.txt", "data.yaml"):
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert (found.usable, found.unusable, found.problem) == (32, (), None)
    assert (found.others, found.pictures_of_other_types) == ("4 files are passed over: 2 .gif, 1 .heic, 1 .json", True)
    (tmp_path / "00.jfif").unlink()
    problem = find_images(tmp_path).problem
    assert problem is not None
    assert problem.startswith(
        "has 31 usable images, 4 files are passed over: 2 .gif, 1 .heic, 1 .json; put at least 32"
    )


def test_a_list_counts_what_it_names(tmp_path: Path) -> None:
    for index in range(32):
        (tmp_path / f"{index:02}.png").write_bytes(encoded("PNG"))
    (tmp_path / "all.txt").write_text("\n".join([*(f"./{index:02}.png" for index in range(32)), "gone.png"]))
    found = find_images(tmp_path / "all.txt")
    assert (found.usable, found.problem) == (32, None)
    assert found.unusable == ("all.txt names 1 of 33 images that do not exist: 'gone.png'",)
