"""Verification and statistics of a model's calibration images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edged.calibration.dataset import MIN_IMAGES
from edged.calibration.folder import ImageFolder, label_path, passed_over
from edged.calibration.images import LARGE_PIXELS, MAX_PIXELS, LargeImageError, decode, read_image
from edged.calibration.yolo_labels import read_labels
from edged.errors import CalibrationError, ImageError
from edged.evaluation.class_names import name_difference
from service.calibration.image_set import CalibrationSet, class_counts, in_threads

ENOUGH_IMAGES = 128  # below it, accuracy suffers; as `edged doctor` has it
_FLAT = 2.0  # standard deviation of intensities, of 255; below it, as with a covered lens
_NEAR = 2  # bits of 64 in which the hashes of near-duplicates differ at most
_ROWS = 256  # hashes compared at a time; bounds memory
_LISTED = 20
_SMALL_CLASS = 0.1  # of the median class

ERROR, WARNING = "error", "warning"
Finding = dict[str, Any]


@dataclass(frozen=True)
class Looked:
    """The measurements of one image, or the reason why it cannot be used.

    Attributes:
        file: Path relative to the calibration folder.
        reason: Reason why the image cannot be used; None if it can.
        sha256: SHA-256 of the file, in hex.
        bits: Difference hash: 64 values 0 or 1, similar for images that look similar.
        deviation: Standard deviation of all intensities, on a scale of 255.
        size: Width and height of the upright image, in pixels.
        sums: Mean of the intensities (0 to 1) and mean of their squares for each channel of the network's input
            [2, channels].
        large: Whether the reason is its number of pixels.
    """

    file: str
    reason: str | None = None
    sha256: str = ""
    bits: npt.NDArray[np.uint8] | None = None
    deviation: float = 0.0
    size: tuple[int, int] = (0, 0)
    sums: npt.NDArray[np.float64] | None = None
    large: bool = False


def look(calibration: CalibrationSet, found: ImageFolder) -> list[Looked]:
    """Decode and measure every image once, on all cores; large images one at a time."""
    looked = in_threads(lambda file: _look(calibration, found.root, file, MAX_PIXELS), found.files)
    return [_look(calibration, found.root, each.file, LARGE_PIXELS) if each.large else each for each in looked]


def verify(calibration: CalibrationSet) -> dict[str, Any]:
    """Verify the calibration images of a model.

    Returns:
        {"model", "folder", "images", "usable", "ok", "findings": [{"level", "what", "files"}]}.

    Raises:
        CalibrationError: The folder cannot be read.
    """
    found = calibration.scan()
    looked = look(calibration, found)
    usable = [image for image in looked if image.reason is None]
    findings = [
        *_unreadable(found, looked),
        *_too_few(len(usable), found),
        *_flat(usable),
        *_repeated(usable),
        *_labels(calibration, found),
        *_passed_over(found),
    ]
    return {
        "model": calibration.model.name,
        "folder": str(calibration.folder),
        "images": len(found.files),
        "usable": len(usable),
        "ok": all(finding["level"] != ERROR for finding in findings),
        "findings": findings,
    }


def statistics(calibration: CalibrationSet) -> dict[str, Any]:
    """Compute the distribution of the images in JSON types, with intensities from 0 to 1 of the network's input.

    Raises:
        CalibrationError: The folder cannot be read, or has no usable image.
    """
    found = calibration.scan()
    usable = [image for image in look(calibration, found) if image.sums is not None]
    if not usable:
        raise CalibrationError(f"{calibration.folder} has no usable image; see `edged calib verify`")
    mean, square = np.mean([image.sums for image in usable if image.sums is not None], axis=0)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    widths, heights = zip(*(image.size for image in usable), strict=True)
    return {
        "model": calibration.model.name,
        "folder": str(calibration.folder),
        "images": len(usable),
        "mean": mean.round(4).tolist(),
        "std": deviation.round(4).tolist(),
        "configured_mean": list(calibration.input.mean),
        "configured_std": list(calibration.input.std),
        "input": calibration.input.to_dict(),
        "width": _range(widths),
        "height": _range(heights),
        "classes": class_counts(found),
        "boxes": _boxes(calibration, found),
        "split": found.split,
        "passed_over": dict(found.others),
    }


def _look(calibration: CalibrationSet, root: Path, file: str, max_pixels: int) -> Looked:
    try:
        data = read_image(root / file)
        decoded = decode(data, calibration.input, max_pixels)
    except ImageError as error:
        return Looked(file, str(error), large=isinstance(error, LargeImageError))
    values = decoded.pixels.astype(np.float64)
    channels = values.reshape(len(values), -1) / 255
    return Looked(
        file,
        sha256=hashlib.sha256(data).hexdigest(),
        bits=_difference_hash(values.mean(axis=0)),
        deviation=float(values.std()),
        size=(decoded.width, decoded.height),
        sums=np.stack([channels.mean(axis=1), (channels**2).mean(axis=1)]),
    )


def _difference_hash(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Compute whether each of 8 x 8 fields is brighter than the field to its left [64]."""
    small = np.asarray(Image.fromarray(grey.astype(np.float32)).resize((9, 8), Image.Resampling.BOX))
    return (small[:, 1:] > small[:, :-1]).astype(np.uint8).ravel()


def _unreadable(found: ImageFolder, looked: Sequence[Looked]) -> Iterator[Finding]:
    broken = [(image.file, image.reason) for image in looked if image.reason is not None]
    for file, reason in [*broken, *((entry.path, entry.reason) for entry in found.skipped)]:
        yield _finding(ERROR, f"{file} {reason}", [file])


def _passed_over(found: ImageFolder) -> Iterator[Finding]:
    if (line := passed_over(found.others)) is not None:
        yield _finding(WARNING, f"{line}; edged reads JPEG, PNG, WebP and BMP")


def _too_few(usable: int, found: ImageFolder) -> Iterator[Finding]:
    if usable < MIN_IMAGES:
        yield _finding(ERROR, f"{usable} usable images; at least {MIN_IMAGES} are needed")
    elif usable < ENOUGH_IMAGES:
        yield _finding(
            WARNING, f"{usable} usable images; more give a more accurate model: 1,024 are enough, for a detector 128"
        )
    counts = class_counts(found)
    usual = float(np.median(list(counts.values()))) if counts else 0.0
    for name, count in counts.items():
        if count < _SMALL_CLASS * usual:
            yield _finding(WARNING, f"class {name} has {count} images, the others about {usual:.0f}")


def _flat(usable: Sequence[Looked]) -> Iterator[Finding]:
    flat = [image.file for image in usable if image.deviation < _FLAT]
    if flat:
        yield _finding(WARNING, f"{len(flat)} images show next to nothing but one color", flat)


def _repeated(usable: Sequence[Looked]) -> Iterator[Finding]:
    """Find copies and similar images, which have double weight without adding information."""
    counts = Counter(image.sha256 for image in usable)
    copies = [image.file for image in usable if counts[image.sha256] > 1]
    if copies:
        yield _finding(WARNING, f"{len(copies)} images are copies of others", copies)
    once = list({image.sha256: image for image in usable if image.deviation >= _FLAT}.values())
    alike = _alike(once)
    if alike:
        yield _finding(WARNING, f"{len(alike)} images look like one before them", alike)


def _alike(images: Sequence[Looked]) -> list[str]:
    """Return the images whose hash is close to that of an earlier one."""
    if not images:
        return []
    bits = np.stack([image.bits for image in images if image.bits is not None]).astype(np.float32)
    alike = []
    for start in range(0, len(bits), _ROWS):
        rows = bits[start : start + _ROWS]
        distances = rows.sum(axis=1)[:, None] + bits.sum(axis=1)[None] - 2 * rows @ bits.T
        for offset, row in enumerate(distances):
            index = start + offset
            if index and row[:index].min() <= _NEAR:
                alike.append(images[index].file)
    return alike


def _labels(calibration: CalibrationSet, found: ImageFolder) -> Iterator[Finding]:
    """Check the YOLO label files, if there are any."""
    labelled = calibration.labelled(found)
    labels = read_labels(found.root, labelled)
    for note in labels.notes() if labels is not None else ():
        yield _finding(WARNING, note)
    if labels is not None and calibration.classes is not None:
        if (misfit := labels.misfit(len(calibration.classes))) is not None:
            yield _finding(ERROR, misfit)
        names = found.names
        if names is not None and (difference := name_difference(names, calibration.classes)) is not None:
            yield _finding(WARNING, f"{calibration.folder} and the live model differ in class names: {difference}")
    bare = sorted(set(found.files) - set(labelled))
    if labelled and bare:
        yield _finding(WARNING, f"{len(bare)} images have no label file and count as showing nothing", bare)
    orphans = _orphans(found, labelled)
    if labelled and orphans:
        yield _finding(WARNING, f"{len(orphans)} label files belong to no image", orphans)


def _orphans(found: ImageFolder, labelled: Sequence[str]) -> list[str]:
    places = {label_path(found.root / file).parent for file in labelled}
    known = {label_path(found.root / file) for file in found.files}
    there = {path for place in places for path in place.glob("*.txt")}
    ignored = {"classes.txt", "readme.txt"}  # written by labeling programs
    return sorted(path.name for path in there - known if path.name.lower() not in ignored)


def _boxes(calibration: CalibrationSet, found: ImageFolder) -> dict[str, int]:
    """Count the labeled boxes of each class of a detector."""
    counts: Counter[int] = Counter()
    labels = read_labels(found.root, found.files)
    for boxes in labels.boxes if labels is not None else ():
        counts.update(boxes.classes.tolist() if boxes is not None else ())
    names = calibration.classes or found.names or ()
    return {names[label] if label < len(names) else str(label): count for label, count in sorted(counts.items())}


def _range(values: Sequence[int]) -> dict[str, float]:
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _finding(level: str, what: str, files: Sequence[str] = ()) -> Finding:
    return {"level": level, "what": what, "files": list(files[:_LISTED])}
