"""Whether there are enough images to calibrate with, by their names and first bytes: nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.calibration.folder import passed_over
from edged.calibration.formats import OTHER_PICTURES, format_of
from edged.calibration.places import find_images as find_files
from edged.errors import CalibrationError

MIN_IMAGES = 32  # with fewer, an update is not quantized
FEW_IMAGES = 128  # with fewer, accuracy suffers
ENOUGH = "1,024 are enough, for a detector 128"
_LOOKED_INTO = 1024  # files; a folder may hold a whole data set
_LONGEST_MAGIC = 12
_NAMED = 3


@dataclass(frozen=True)
class Images:
    """The images of a calibration folder or list.

    Attributes:
        usable: Number of files that begin like an image.
        unusable: The other files with an image's suffix, each with the reason.
        problem: Why no model can be quantized with them, and what to do; None if nothing is known against it.
        others: Number and types of the files that are passed over, in a line; None if there are none.
        pictures_of_other_types: Whether pictures are among them.
    """

    usable: int
    unusable: tuple[str, ...] = ()
    problem: str | None = None
    others: str | None = None
    pictures_of_other_types: bool = False


def find_images(folder: Path) -> Images:
    """Count the usable images of a calibration folder, a data.yaml or a list."""
    try:
        found = find_files(folder)
    except CalibrationError as error:
        return Images(0, problem=str(error))
    reasons = ((file, _why_unusable(found.root / file)) for file in found.files[:_LOOKED_INTO])
    unusable = [f"{file} {reason}" for file, reason in reasons if reason is not None]
    unusable += [f"{entry.path} {entry.reason}" for entry in found.skipped]
    usable = len(found.files) - len(unusable) + len(found.skipped)
    others = passed_over(found.others)
    problem = None if usable >= MIN_IMAGES else _too_few(usable, unusable, others)
    return Images(usable, tuple(unusable), problem, others, not OTHER_PICTURES.isdisjoint(found.others))


def _too_few(usable: int, unusable: list[str], others: str | None) -> str:
    named = ", ".join(unusable[:_NAMED]) + (f" and {len(unusable) - _NAMED} more" if len(unusable) > _NAMED else "")
    text = f"has {usable} usable images{f' ({named})' if named else ''}{f', {others}' if others else ''}"
    return f"{text}; put at least {MIN_IMAGES} there of what the model will see; {ENOUGH}"


def _why_unusable(path: Path) -> str | None:
    """Return why a file is no image, as the end of a sentence that begins with its name; None if it may be one."""
    try:
        with path.open("rb") as file:
            head = file.read(_LONGEST_MAGIC)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return "is empty"
    return "begins like no image" if format_of(head) is None else None
