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
