"""Which images of a folder are used, in which order, and what their labels are. Decodes nothing."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.errors import CalibrationError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True)
class SkippedImage:
    """An image file that is not used.

    Attributes:
        path: Relative to the calibration folder, with forward slashes.
        reason: One line that continues "<path> ...".
    """

    path: str
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """The image files under a folder.

    Attributes:
        files: Paths relative to the folder, sorted.
        classes: Sorted names of the class folders; empty when the layout gives no labels.
        skipped: What looks like an image by its name and cannot be read as a file.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    skipped: tuple[SkippedImage, ...]

    def label(self, file: str) -> int:
        """Class index of one of `files`; needs `classes`."""
        return self.classes.index(file.split("/", 1)[0])


def scan(folder: Path) -> ImageFolder:
    """Find every image under `folder`, nested or not.

    Files are taken by their suffix (SUFFIXES). Names that begin with a dot are passed over. Links to folders are
    followed, and each folder is visited once, so a loop of links ends. Labels exist when every image lies exactly one
    level down, in at least two folders.

    Raises:
        CalibrationError: `folder` is missing, no folder, or unreadable.
    """
    skipped: list[SkippedImage] = []
    try:
        files = sorted(_walk(folder, skipped))
    except OSError as error:
        raise CalibrationError(
            f"calibration folder {folder} cannot be read: {error.strerror}; create it and put images into it"
        ) from error
    parts = [file.split("/") for file in files]
    classes = sorted({part[0] for part in parts}) if all(len(part) == 2 for part in parts) else []
    return ImageFolder(tuple(files), tuple(classes) if len(classes) >= 2 else (), tuple(skipped))


def select(images: ImageFolder, limit: int | None) -> tuple[str, ...]:
    """A class-balanced, repeatable choice of at most `limit` files.

    Files are shuffled by the hash of their names, then dealt class by class, so that every prefix is balanced and a
    file added to the folder moves few others.

    Args:
        images: From `scan`.
        limit: Most files to take; None for all.
    """
    shuffled = sorted(images.files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())
    labels = [images.label(file) for file in shuffled] if images.classes else [0] * len(shuffled)
    return tuple(shuffled[index] for index in deal(labels)[:limit])


def deal(labels: Sequence[int]) -> list[int]:
    """Indices in an order that takes one of every class in turn; within a class they keep their order."""
    seen: dict[int, itertools.count[int]] = {}
    ranks = [next(seen.setdefault(label, itertools.count())) for label in labels]
    return sorted(range(len(labels)), key=lambda index: (ranks[index], labels[index]))


def _walk(folder: Path, skipped: list[SkippedImage]) -> Iterator[str]:
    """Relative paths of the image files under `folder`; what cannot be opened is added to `skipped`."""
    visited: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        relative = pending.pop()
        path = folder / relative
        try:
            status = path.stat()
            entries = [] if (status.st_dev, status.st_ino) in visited else sorted(os.scandir(path), key=_name)
        except OSError as error:
            if not relative:
                raise
            skipped.append(SkippedImage(relative, f"cannot be read: {error.strerror}"))
            continue
        visited.add((status.st_dev, status.st_ino))
        below = []
        for entry in entries:
            name = f"{relative}/{entry.name}" if relative else entry.name
            if entry.name.startswith("."):
                continue
            if _is(entry.is_dir):
                below.append(name)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                if _is(entry.is_file):
                    yield name
                else:
                    skipped.append(SkippedImage(name, "is no regular file"))
        pending.extend(reversed(below))


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _is(test: Callable[[], bool]) -> bool:
    """`test`, False where a loop of links makes it fail."""
    try:
        return test()
    except OSError:
        return False
