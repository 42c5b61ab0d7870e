"""Selection, order and labels of the images in a folder; nothing is decoded."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edged.calibration.formats import SUFFIXES
from edged.errors import CalibrationError

# Suffixes of what belongs to a data set and holds no image; any other file is counted as passed over.
COMPANIONS = frozenset({".txt", ".yaml", ".yml", ".cache", ".md"})
_LISTED_TYPES = 10
_SUFFIX_LENGTH = 16


@dataclass(frozen=True)
class SkippedImage:
    """An image file that is not used.

    Attributes:
        path: Path relative to the calibration folder, with forward slashes.
        reason: One line that completes the sentence "<path> ...".
    """

    path: str
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """The image files of a folder or a list.

    Attributes:
        files: Paths relative to `root`, sorted; absolute where a list names files outside of it.
        classes: Sorted names of the class folders; empty if the layout gives no labels.
        skipped: Entries with the suffix of an image that cannot be read as a file, and unreadable folders.
        root: Folder that the paths are relative to.
        others: Number of the files that are neither images nor COMPANIONS, by suffix in lower case.
        names: Names of a detector's classes by class id, from a data.yaml; None without one.
        split: Key of the data.yaml that the images are from, such as "train"; None without one.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    skipped: tuple[SkippedImage, ...]
    root: Path = Path()
    others: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    split: str | None = None

    def label(self, file: str) -> int:
        """Return the class index of one of `files`; `classes` must not be empty."""
        return self.classes.index(file.split("/", 1)[0])


def scan(folder: Path) -> ImageFolder:
    """Find every image under `folder`, nested or not.

    Files are recognized by their suffix (SUFFIXES). Names that start with a dot are ignored. Links to folders are
    followed, and each folder is visited once, so loops of links end. The images have labels if each of them is exactly
    one level down and there are at least two such folders.

    Raises:
        CalibrationError: `folder` is missing, not a folder, or unreadable.
    """
    skipped: list[SkippedImage] = []
    others: Counter[str] = Counter()
    try:
        files = sorted(_walk(folder, skipped, others))
    except OSError as error:
        raise CalibrationError(
            f"calibration folder {folder} cannot be read: {error.strerror}; create it and put images into it"
        ) from error
    return ImageFolder(tuple(files), classes_of(files), tuple(skipped), folder, dict(sorted(others.items())))


def classes_of(files: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the class folders of files: each one level down, in at least two folders; otherwise none."""
    parts = [file.split("/") for file in files]
    classes = sorted({part[0] for part in parts}) if all(len(part) == 2 for part in parts) else []
    return tuple(classes) if len(classes) >= 2 else ()


def passed_over(others: Mapping[str, int]) -> str | None:
    """Describe the files of other types in one line, the most frequent first; None if there are none."""
    if not others:
        return None
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ranked[:_LISTED_TYPES]]
    more = [f"{len(ranked) - _LISTED_TYPES} other types"] if len(ranked) > _LISTED_TYPES else []
    count = sum(others.values())
    return f"{count} {'file is' if count == 1 else 'files are'} passed over: {', '.join([*listed, *more])}"


def select(images: ImageFolder, limit: int | None) -> tuple[str, ...]:
    """Choose at most `limit` files, balanced over classes and reproducible.

    Files are shuffled by the hash of their names and then taken from each class in turn. So every prefix is balanced,
    and a file that is added to the folder moves few others.

    Args:
        images: Result of `scan`.
        limit: Maximum number of files; None for all.
    """
    shuffled = sorted(images.files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())
    labels = [images.label(file) for file in shuffled] if images.classes else [0] * len(shuffled)
    return tuple(shuffled[index] for index in deal(labels)[:limit])


def deal(labels: Sequence[int]) -> list[int]:
    """Order indices so that each class takes turns; indices of the same class keep their order."""
    seen: dict[int, itertools.count[int]] = {}
    ranks = [next(seen.setdefault(label, itertools.count())) for label in labels]
    return sorted(range(len(labels)), key=lambda index: (ranks[index], labels[index]))


def label_path(image: Path) -> Path:
    """Return the path of an image's labels: in the folder `labels` for an image under `images`, else next to it."""
    parts = list(image.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _walk(folder: Path, skipped: list[SkippedImage], others: Counter[str]) -> Iterator[str]:
    """Yield the relative paths of the image files under `folder`.

    What cannot be opened is added to `skipped`, and files of other types are counted in `others`.
    """
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
                continue
            suffix = Path(entry.name).suffix.lower()
            if suffix in SUFFIXES and _is(entry.is_file):
                yield name
            elif suffix in SUFFIXES:
                skipped.append(SkippedImage(name, "is not a regular file"))
            elif suffix not in COMPANIONS:
                others[suffix[:_SUFFIX_LENGTH] if suffix.isprintable() else ""] += 1
        pending.extend(reversed(below))


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _is(test: Callable[[], bool]) -> bool:
    """Call `test`, returning False where a loop of links makes it fail."""
    try:
        return test()
    except OSError:
        return False
