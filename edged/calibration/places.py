"""The place of images: a folder, a data.yaml as YOLOv5 trains with, or a text file with one image a line.

    path: ../datasets/coco128      # optional
    train: images/train2017        # a folder, a text file, or a list of them
    val: images/val2017
    names: {0: person, 1: bicycle} # or a list

Nothing is decoded, and `download` and all other keys are ignored.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edged.calibration.folder import ImageFolder, SkippedImage, classes_of, scan
from edged.calibration.formats import SUFFIXES
from edged.errors import CalibrationError
from edged.file_kind import FILE, FOLDER, kind_of
from edged.json_document import MALFORMED
from edged.spelling import one_line

CALIBRATE, EVALUATE = "train", "val"
_YAML, _LIST = frozenset({".yaml", ".yml"}), ".txt"
# The keys to take images from, in order of preference.
_SPLITS: Mapping[str, tuple[str, ...]] = {CALIBRATE: ("train", "val"), EVALUATE: ("val", "test")}
MAX_YAML_BYTES = 1 << 20
MAX_LIST_BYTES = 64 << 20
MAX_LINES = 1_000_000
MAX_NAMES = 10_000
_NAMED = 3


def find_images(place: Path, split: str = CALIBRATE) -> ImageFolder:
    """Find the images of a folder, a data.yaml or a text file.

    Args:
        place: Path of the folder or file.
        split: Use of the images, CALIBRATE or EVALUATE, which chooses between the images of a data.yaml.

    Raises:
        CalibrationError: The place is missing or unreadable, or the file is not as described above.
    """
    try:
        if not is_list(place):
            return scan(place)
        if place.suffix.lower() == _LIST:
            return _listed(place.absolute().parent, [place.absolute()], place)
        return _of_yaml(place, split)
    except CalibrationError as error:  # which may quote what is in the file
        raise CalibrationError(one_line(str(error))) from error


def is_list(place: Path) -> bool:
    """Return whether a place is a data.yaml or a text file, by its suffix, and not a folder of such a name."""
    return place.suffix.lower() in {*_YAML, _LIST} and kind_of(place) != FOLDER


@dataclass
class _Gathered:
    """Images of several folders and lists, relative to one root."""

    root: Path
    files: dict[str, None] = field(default_factory=dict)
    skipped: list[SkippedImage] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def add_folder(self, folder: Path) -> None:
        """Add the images under a folder."""
        found = scan(folder)
        self.files.update(dict.fromkeys(self._name(folder / file) for file in found.files))
        self.skipped += [SkippedImage(self._name(folder / entry.path), entry.reason) for entry in found.skipped]
        self.others.update(found.others)

    def add_list(self, path: Path) -> None:
        """Add the images that a text file names; those that do not exist are counted."""
        lines = list(_lines(path))
        bases = (path.parent, self.root, Path.cwd())
        missing: list[str] = []
        base = next((base for base in bases if lines and kind_of(base / lines[0])), path.parent)
        for line in lines:
            image = (path.parent if line.startswith("./") else base) / line  # as in YOLOv5
            suffix = image.suffix.lower()
            if suffix not in SUFFIXES:
                self.others[suffix[:16] if suffix.isprintable() else ""] += 1
            elif kind_of(image) == FILE:
                self.files[self._name(image)] = None
            else:
                missing.append(line)
        if missing:
            names = ", ".join(map(_shown, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
            reason = f"names {len(missing)} of {len(lines)} images that do not exist: {names}"
            self.skipped.append(SkippedImage(self._name(path), reason))

    def images(self) -> ImageFolder:
        """Return what was found, in the order of names."""
        files = sorted(self.files)
        return ImageFolder(
            tuple(files), classes_of(files), tuple(self.skipped), self.root, dict(sorted(self.others.items()))
        )

    def _name(self, path: Path) -> str:
        """Return an absolute path relative to the root if it is below it."""
        plain = Path(os.path.normpath(path))
        return plain.relative_to(self.root).as_posix() if plain.is_relative_to(self.root) else plain.as_posix()


def _listed(root: Path, sources: Sequence[Path], place: Path) -> ImageFolder:
    if len(sources) == 1 and kind_of(sources[0]) == FOLDER:
        return scan(sources[0])
    gathered = _Gathered(Path(os.path.normpath(root)))
    for source in sources:
        if kind_of(source) == FOLDER:
            gathered.add_folder(source)
        elif source.suffix.lower() == _LIST:
            gathered.add_list(source)
        else:
            raise CalibrationError(
                f"{place} names {_shown(str(source))}, which is no folder of images and no .txt list; correct it"
            )
    return gathered.images()


def _of_yaml(place: Path, split: str) -> ImageFolder:
    data = _parsed(place)
    keys = _SPLITS[split]
    key = next((key for key in keys if data.get(key)), None)
    if key is None:
        raise CalibrationError(f"{place} has no images under {' or '.join(map(repr, keys))}; give a folder or a list")
    entries = data[key] if isinstance(data[key], list) else [data[key]]
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise CalibrationError(f"{place}: {key} is no path; give a folder, a .txt list, or several of them")
    given = data.get("path")
    if given is not None and not isinstance(given, str):
        raise CalibrationError(f"{place}: path is a {type(given).__name__}; give the folder of the images, or drop it")
    roots = _roots(place, given or "")
    for root in roots:
        sources = [_resolved(root, entry) for entry in entries]
        if all(source is not None for source in sources):
            found = _listed(root, [source for source in sources if source is not None], place)
            return replace(found, names=_names(place, data.get("names")), split=key)
    tried = " or ".join(str(root / entries[0]) for root in roots)
    raise CalibrationError(
        f"{place}: {key} names {_shown(entries[0])}, and there is no {tried:.500}; correct path or {key}"
    )


def _roots(place: Path, path: str) -> list[Path]:
    """Return the folders that a data.yaml's `path` may mean, the likeliest first.

    YOLOv5 resolves it against its own checkout, whose folder `data` has the file; others against the file's folder. In
    a data set that was moved, the file is in it, and `path` may be that of another machine.
    """
    folder = place.absolute().parent
    roots = [folder / path, folder.parent / path, Path.cwd() / path, folder]
    return list(dict.fromkeys(Path(os.path.normpath(root)) for root in roots))


def _resolved(root: Path, entry: str) -> Path | None:
    """Return the place of an entry, or None. As in YOLOv5, `../` is dropped where there is nothing above."""
    candidates = [root / entry, *([root / entry[3:]] if entry.startswith("../") else [])]
    return next((Path(os.path.normpath(path)) for path in candidates if kind_of(path)), None)


def _parsed(place: Path) -> dict[str, Any]:
    import yaml  # only here: most places are folders

    try:
        # The safe loader refuses tags, and an alias is the same object again, so nothing grows.
        data = yaml.safe_load(_read(place, MAX_YAML_BYTES))
    except (yaml.YAMLError, *MALFORMED) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it is nested too deep or holds an impossible value"
        raise CalibrationError(f"{place}{where} is not YAML: {problem}; give a data.yaml as YOLOv5 has it") from None
    if not isinstance(data, dict):
        raise CalibrationError(f"{place} has no keys; give a data.yaml with train, val and names")
    return data


def _names(place: Path, given: object) -> tuple[str, ...] | None:
    """Return the class names by class id, of a list or of a mapping from id to name."""
    if given is None:
        return None
    if isinstance(given, dict) and all(type(key) is int for key in given) and set(given) == set(range(len(given))):
        given = [given[index] for index in range(len(given))]
    plain = (str, int, float)  # YAML reads a class named 1 or 0.5 as a number, and one named no as False
    if not isinstance(given, list) or len(given) > MAX_NAMES or not all(isinstance(name, plain) for name in given):
        raise CalibrationError(f"{place}: names must be a list, or map each class id from 0 on to its name")
    try:
        return tuple(str(name) for name in given)
    except ValueError:  # a number of more than 4300 digits
        raise CalibrationError(f"{place}: a name is a number of thousands of digits; give names") from None


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file that are not empty."""
    lines = os.fsdecode(_read(path, MAX_LIST_BYTES).removeprefix(codecs.BOM_UTF8)).split("\n")
    if len(lines) > MAX_LINES:
        raise CalibrationError(f"{path} has {len(lines)} lines; at most {MAX_LINES} are allowed")
    for line in map(str.strip, lines):
        if line:
            yield line


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}; give a folder of images or a list") from error
    if len(data) > most:
        raise CalibrationError(f"{path} is larger than {most} bytes; is it a list of images?")
    return data


def _shown(text: str) -> str:
    return repr(text[:120])
