"""Addition of images to a model's calibration folder, atomically and without undecodable files and duplicates.

Each addition comes with a command that undoes it: a plain `rm` for a few files, a script next to them for more.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error, write_atomic
from edged.calibration.folder import ImageFolder, label_path
from edged.calibration.formats import SUFFIXES
from edged.calibration.images import LARGE_PIXELS, decode, read_image, suffix_of
from edged.calibration.places import find_images, is_list
from edged.errors import ImageError, UsageError
from service.calibration.image_set import CalibrationSet, in_threads

_PRIVATE = 0o640  # permissions of images from clients' requests
_FEW_FILES = 20  # more make a command too long to read


@dataclass
class Added:
    """The result of adding images.

    Attributes:
        added: Paths of the added images, relative to the calibration folder.
        labels: Paths of the label files that came along.
        dry_run: Whether nothing was written, and `added` and `labels` are what would be.
        undo: Command that removes all of it again; None if nothing was added.
        known: Number of images whose contents were already in the folder.
        refused: Path and reason of each file that is not a usable image.
    """

    added: list[str] = field(default_factory=list)
    known: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    dry_run: bool = False
    undo: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert the result to JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Candidate:
    path: Path
    place: str  # path relative to the calibration folder
    private: bool = False


def add_images(
    calibration: CalibrationSet,
    sources: Sequence[Path],
    class_name: str | None = None,
    captured: Sequence[Path] = (),
    dry_run: bool = False,
) -> Added:
    """Copy images into the calibration folder of a model.

    The structure of a source folder is kept: class folders remain class folders, and label files are copied too.

    Args:
        calibration: Calibration set to add images to.
        sources: Paths of image files, and of folders of images.
        class_name: Name of the class folder for all images; None to keep their places.
        captured: Paths of images from live requests, which are added too. The copies are not world-readable and belong
            to the owner of the originals.
        dry_run: Whether to write nothing.

    Raises:
        UsageError: A source does not exist, or the new images would invalidate the labels of the present ones.
        CalibrationError: A folder cannot be read.
        StateError: The calibration folder cannot be written; images added before remain.
    """
    if is_list(calibration.folder):
        raise UsageError(
            f"calibration.dir of {calibration.model.name} is the list {calibration.folder}; put the images next to"
            " those that it names, and add lines to it"
        )
    found = calibration.scan()
    candidates = [*_candidates(sources, class_name), *_candidates(captured, class_name, private=True)]
    _check_places(calibration, found, candidates)
    hashes = set(in_threads(lambda file: _sha256(calibration.folder / file), found.files))
    result = Added(dry_run=dry_run)
    root, taken, folders = calibration.folder, set[Path](), list[Path]()
    try:
        for candidate in candidates:
            try:
                data = read_image(candidate.path)
                decode(data, calibration.input, LARGE_PIXELS)
                suffix = suffix_of(data)
            except ImageError as error:
                result.refused.append({"path": str(candidate.path), "reason": str(error)})
                continue
            digest = hashlib.sha256(data).hexdigest()
            if digest in hashes:
                result.known += 1
                continue
            hashes.add(digest)
            labels = label_path(candidate.path)
            target = _free_place(root / candidate.place, suffix, digest, labels.is_file(), taken)
            places = [label_path(target), target] if labels.is_file() else [target]
            taken.update(places)
            if not dry_run:
                folders += _missing_folders(places)
                _copy(candidate, data, target)
            result.labels += [_relative(place, root) for place in places[:-1]]
            result.added.append(_relative(target, root))
    finally:  # what was written before an error can be undone, too
        if result.added and not dry_run:
            result.undo = _undo(root, [*result.added, *result.labels], folders)
    return result


def _undo(root: Path, files: Sequence[str], folders: Sequence[Path]) -> str:
    """Return a command that removes files, and folders that were made for them and are empty then."""
    remove = ["rm -f --", *(shlex.quote(str(root / file)) for file in files)]
    empty = ["rmdir --", *(shlex.quote(str(folder)) for folder in reversed(folders))]
    if len(files) <= _FEW_FILES and " ".join(remove).isprintable():  # so that it can be copied from a terminal
        return " ".join(remove) + (f" && {' '.join(empty)}" if folders else "")
    lines = ["#!/bin/sh", "# Removes the files that `edged calib add` copied here.", "set -e"]
    lines += [f"rm -f -- {name}" for name in remove[1:]] + [f"rmdir -- {name} || true" for name in empty[1:]]
    digest = hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()
    script = root / f".edged-undo-{digest[:12]}.sh"  # the scan of images ignores such names
    write_atomic(script, os.fsencode("\n".join([*lines, f"rm -f -- {shlex.quote(str(script))}", ""])))
    return f"sh {shlex.quote(str(script))}"


def _missing_folders(places: Sequence[Path]) -> list[Path]:
    """Return the folders that are made for files, the outermost first."""
    missing = {folder for place in places for folder in place.parents if not folder.exists()}
    return sorted(missing, key=lambda folder: len(folder.parts))


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()  # labels/ may be next to the folder of the images


def _candidates(sources: Sequence[Path], class_name: str | None, private: bool = False) -> Iterator[_Candidate]:
    for source in sources:
        if source.is_dir() or (is_list(source) and source.is_file()):
            found = find_images(source)
            files = [(found.root / file, file.lstrip("/")) for file in found.files]
        elif source.exists():
            files = [(source, source.name)]
        else:
            raise UsageError(f"{source} does not exist; give images, or folders of them")
        for path, place in files:
            yield _Candidate(path, place if class_name is None else f"{class_name}/{path.name}", private)


def _check_places(calibration: CalibrationSet, found: ImageFolder, candidates: Sequence[_Candidate]) -> None:
    """Check that the new images keep the labels valid, which depend on the places of all images."""
    strays = [c.place for c in candidates if c.place.count("/") != 1 or c.place.split("/")[0] not in found.classes]
    if found.classes and strays:
        raise UsageError(
            f"{calibration.folder} has a folder a class, and {strays[0]!r:.100} would be in none of them; give --class"
            f" with one of {', '.join(found.classes)[:300]}"
        )
    if calibration.labelled(found):
        bare = [str(c.path) for c in candidates if not label_path(c.path).is_file()]
        if bare:
            raise UsageError(
                f"{calibration.folder} has YOLO labels, and {bare[0]} has none, so it would count as an image without"
                " boxes; put a label file next to it, an empty one if it has no boxes"
            )


def _free_place(wanted: Path, suffix: str, digest: str, labeled: bool, taken: Set[Path]) -> Path:
    """Return a place where neither an image nor, if it has labels, a label file is replaced."""
    if wanted.suffix.lower() not in SUFFIXES:
        wanted = wanted.with_name(wanted.name + suffix)
    places = [wanted, label_path(wanted)] if labeled else [wanted]
    if not any(place.exists() or place in taken for place in places):
        return wanted
    return wanted.with_name(f"{wanted.stem}-{digest[:12]}{wanted.suffix}")


def _copy(candidate: _Candidate, data: bytes, target: Path) -> None:
    with as_state_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    labels = label_path(candidate.path)
    if labels.is_file():  # copied first, because an image without labels counts as one without boxes
        place = label_path(target)
        with as_state_error(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(labels, place)
    if not candidate.private:
        write_atomic(target, data)
        return
    write_atomic(target, data, _PRIVATE)
    if os.geteuid() == 0:  # the daemon, which captured the image, must be able to read the copy, too
        with as_state_error(target):
            owner = candidate.path.stat()
            os.chown(target, owner.st_uid, owner.st_gid)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(read_image(path)).hexdigest()
    except ImageError as error:
        return str(error)  # reported by `edged calib verify`
