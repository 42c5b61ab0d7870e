"""A memory-mapped cache of decoded images on disk, keyed by the folder's contents and the preprocessing.

A cache is the folder <cache_root>/<first 16 digits of its digest> with two files:
    images.u8    uint8 [n, channels, size, size], C order
    meta.json    digest, files, labels, classes, skipped, max_pixels; for letterboxes also sizes
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edged.atomic import as_state_error, fsync_tree, make_folder, rename_into_place, temporary_sibling
from edged.calibration.color_histograms import Histograms, color_histograms
from edged.calibration.folder import ImageFolder, SkippedImage, deal, passed_over, select
from edged.calibration.images import (
    LARGE_PIXELS,
    MAX_PIXELS,
    Decoded,
    LargeImageError,
    decode,
    normalize,
    read_image,
)
from edged.calibration.letterbox import Letterbox
from edged.calibration.places import CALIBRATE, find_images
from edged.errors import CalibrationError, ImageError
from edged.json_document import MALFORMED
from edged.progress import ProgressListener, SilentListener
from edged.spec import Fit, InputSpec

log = logging.getLogger(__name__)

MIN_IMAGES = 32  # fewer images do not represent the layers' inputs
MIN_HELD_OUT = 8
_LAYOUT = 1  # part of the digest; raise it when the layout or the decoding changes
_COLOR_IMAGES = 512  # more images do not change the histogram noticeably
_COLOR_BATCH = 16
_CHUNK = 64  # images in flight: bounds memory when map_fn runs ahead of the writer

MapFn = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class ImageCache:
    """Decoded images of one calibration folder for one input size.

    Attributes:
        directory: Folder of the cache.
        digest: SHA-256 of the images' names and contents, sizes and channels, in hex.
        input: Preprocessing of the images. Mean and std apply in `batch`, so one cache serves any mean and std.
        files: Path of each image relative to its folder.
        labels: Class index of each image, int64 [n]; None if the folder has no labels.
        classes: Class names by class index; empty without labels.
        sizes: Width and height of each image before scaling in pixels, for letterboxes; otherwise empty.
        skipped: Image files that could not be used.
        root: Folder that `files` are relative to.
        others: Number of files of other types, by suffix; they are passed over.
        names: Names of a detector's classes by class id, from a data.yaml; None without one.
        split: Key of the data.yaml that the images are from; None without one.
        current: Whether decoding the same files again would skip the same ones.
        images: Decoded images, uint8 [n, channels, size, size], read-only, memory-mapped.
        held_out: Indices of the images for evaluation, int64, ascending: a tenth of all images, at least MIN_HELD_OUT,
            balanced over classes.
        calibration: Indices of all other images, int64, ascending.
    """

    def __init__(self, directory: Path, spec: InputSpec, found: ImageFolder | None = None) -> None:
        found = found or ImageFolder((), (), ())
        meta = json.loads((directory / "meta.json").read_bytes())
        self.directory = directory
        self.input = spec
        self.digest: str = meta["digest"]
        self.files: tuple[str, ...] = tuple(meta["files"])
        self.classes: tuple[str, ...] = tuple(meta["classes"])
        self.labels = torch.tensor(meta["labels"], dtype=torch.int64) if self.classes else None
        self.sizes: tuple[tuple[int, int], ...] = tuple((wide, high) for wide, high in meta.get("sizes", ()))
        self.skipped = (*found.skipped, *(SkippedImage(**entry) for entry in meta["skipped"]))
        self.root, self.others, self.names, self.split = found.root, found.others, found.names, found.split
        shape = (len(self.files), spec.channels, spec.size, spec.size)
        with (directory / "images.u8").open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Files that were skipped under other bounds may be usable now.
        self.current = not meta["skipped"] or meta.get("max_pixels") == LARGE_PIXELS
        self.images: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8).reshape(shape)
        self.calibration, self.held_out = _split(meta["labels"])

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Tensor) -> Tensor:
        """Return normalized images, float32 [b, channels, size, size], contiguous.

        Args:
            indices: Indices of the images, int64 [b].
        """
        return torch.from_numpy(normalize(self.pixels(indices), self.input))

    def pixels(self, indices: Tensor) -> npt.NDArray[np.uint8]:
        """Return a copy of decoded images, uint8 [b, channels, size, size].

        Args:
            indices: Indices of the images, int64 [b].
        """
        pixels: npt.NDArray[np.uint8] = self.images[indices.numpy()]
        # The pages stay in the page cache; if they stayed mapped, they would count as this process's memory too.
        self._map.madvise(mmap.MADV_DONTNEED)
        return pixels

    def color_histogram(self) -> Histograms:
        """Compute the mean color histogram [axes, BINS] of at most _COLOR_IMAGES evenly spaced calibration images."""
        step = -(-len(self.calibration) // _COLOR_IMAGES)
        chosen = self.calibration[::step]
        parts = [
            color_histograms(self.pixels(chosen[start : start + _COLOR_BATCH])).sum(axis=0)
            for start in range(0, len(chosen), _COLOR_BATCH)
        ]
        return np.asarray(np.sum(parts, axis=0) / len(chosen), np.float64)

    def batches(self, indices: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield the normalized images of each `batch_size` successive indices; the last batch may be smaller."""
        for start in range(0, len(indices), batch_size):
            yield self.batch(indices[start : start + batch_size])

    def letterbox(self, index: int) -> Letterbox:
        """Return the position of an image in its square; only for caches of letterboxes."""
        return Letterbox(*self.sizes[index], self.input.size)

    def labels_of(self, indices: Tensor) -> Tensor | None:
        """Return the class indices of images, int64 [len(indices)], or None without labels."""
        return None if self.labels is None else self.labels[indices]


def build_cache(
    folder: Path,
    cache_root: Path,
    spec: InputSpec,
    *,
    limit: int | None = None,
    map_fn: MapFn = map,
    listener: ProgressListener | None = None,
    split: str = CALIBRATE,
) -> ImageCache:
    """Open the cache of `folder`, decoding the images if no cache of the same contents and preprocessing exists.

    Args:
        folder: Folder of images (JPEG, PNG, WebP, BMP), nested or not, a data.yaml, or a text file with one image a
            line; see `edged.calibration.folder.scan` for labels.
        cache_root: Parent folder of all caches. Older caches are not removed.
        spec: Size, fit and channels of the network input.
        limit: Maximum number of images, chosen before decoding and balanced over classes; None for all.
        map_fn: Either `map` or an executor's map, which must keep the order of results.
        listener: Listener that is notified of the number of images done.
        split: Use of the images, which chooses between those of a data.yaml; see `edged.calibration.places`.

    Raises:
        CalibrationError: The folder is missing or has fewer than MIN_IMAGES usable images.
        StateError: The cache cannot be written.
    """
    listener = listener or SilentListener()
    found, files, hashes = _identify(folder, limit, map_fn, split)
    if (line := passed_over(found.others)) is not None:
        log.warning("%s: %s", folder, line)
    digest = _digest(spec, found.classes, files, hashes)
    directory = cache_root / digest[:16]
    if (cache := _open(directory, digest, spec, found)) is not None:
        return cache
    temporary = temporary_sibling(directory)
    with as_state_error(cache_root):
        make_folder(cache_root)
        temporary.mkdir()
        try:
            kept, sizes, skipped = _decode_all(
                found.root, files, hashes, temporary / "images.u8", spec, map_fn, listener
            )
            _require_enough(folder, len(kept), [*found.skipped, *skipped], found.others)
            meta = {
                "digest": digest,
                "files": kept,
                "labels": [found.label(file) if found.classes else 0 for file in kept],
                "classes": found.classes,
                "skipped": [vars(entry) for entry in skipped],
                "max_pixels": LARGE_PIXELS,
                **({"sizes": sizes} if spec.fit is Fit.LETTERBOX else {}),
            }
            (temporary / "meta.json").write_text(json.dumps(meta))
            fsync_tree(temporary)
            # Another process may have finished the same cache meanwhile; anything else in its place is damaged.
            if _open(directory, digest, spec, found) is None:
                shutil.rmtree(directory, ignore_errors=True)
                rename_into_place(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return ImageCache(directory, spec, found)


def cache_digest(folder: Path, spec: InputSpec, *, limit: int | None = None, map_fn: MapFn = map) -> str:
    """Compute the digest that `build_cache` would give the cache of `folder` now.

    Every image file is read, but none is decoded.

    Args:
        folder: Folder of images.
        spec: Size, fit and channels of the network input.
        limit: Maximum number of images; None for all.
        map_fn: Either `map` or an executor's map, which must keep the order of results.

    Returns:
        The SHA-256 digest in hex.

    Raises:
        CalibrationError: The folder is missing.
    """
    found, files, hashes = _identify(folder, limit, map_fn, CALIBRATE)
    return _digest(spec, found.classes, files, hashes)


def _identify(
    folder: Path, limit: int | None, map_fn: MapFn, split: str
) -> tuple[ImageFolder, tuple[str, ...], list[str]]:
    """Find the images of a folder or a list, select the files to use and compute the SHA-256 of each."""
    found = find_images(folder, split)
    files = select(found, limit)
    return found, files, _hash_files(found.root, files, map_fn)


def _split(labels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split the indices into calibration and held-out ones, both ascending; held-out ones are class-balanced."""
    count = max(MIN_HELD_OUT, round(len(labels) / 10))
    held_out = set(deal(labels)[:count])
    rest = [index for index in range(len(labels)) if index not in held_out]
    return torch.tensor(rest), torch.tensor(sorted(held_out))


def _digest(spec: InputSpec, classes: Sequence[str], files: Sequence[str], hashes: Sequence[str]) -> str:
    preprocessing: list[int | str] = [_LAYOUT, spec.size, spec.resize, spec.channels]
    if spec.fit is Fit.LETTERBOX:
        preprocessing[2] = spec.fit.value  # crops keep the digest from before letterboxes were added
    return hashlib.sha256(json.dumps([preprocessing, classes, files, hashes]).encode()).hexdigest()


def _hash_files(folder: Path, files: Sequence[str], map_fn: MapFn) -> list[str]:
    return list(map_fn(partial(_hash_file, folder), files))


def _hash_file(folder: Path, file: str) -> str:
    try:
        return hashlib.sha256(read_image(folder / file)).hexdigest()
    except ImageError as error:
        return str(error)  # decoding will raise the same error and skip the file


def _load(folder: Path, spec: InputSpec, job: tuple[str, str]) -> Decoded | str | None:
    """Decode one file, or return the reason why it cannot be used; None if it has to be decoded on its own."""
    try:
        return _load_within(MAX_PIXELS, folder, spec, job)
    except LargeImageError:
        return None


def _load_large(folder: Path, spec: InputSpec, job: tuple[str, str]) -> Decoded | str:
    """Decode one file of up to LARGE_PIXELS, or return the reason why it cannot be used."""
    try:
        return _load_within(LARGE_PIXELS, folder, spec, job)
    except LargeImageError as error:
        return str(error)


def _load_within(max_pixels: int, folder: Path, spec: InputSpec, job: tuple[str, str]) -> Decoded | str:
    file, expected = job
    try:
        data = read_image(folder / file)
        if hashlib.sha256(data).hexdigest() != expected:
            return "changed while it was being read"
        return decode(data, spec, max_pixels)
    except LargeImageError:
        raise
    except ImageError as error:
        return str(error)


def _decode_all(
    folder: Path,
    files: Sequence[str],
    hashes: Sequence[str],
    target: Path,
    spec: InputSpec,
    map_fn: MapFn,
    listener: ProgressListener,
) -> tuple[list[str], list[tuple[int, int]], list[SkippedImage]]:
    """Write the pixels of each usable file to `target`, one after the other.

    Returns:
        The files that were written, their images' widths and heights in pixels, and the skipped files.
    """
    kept: list[str] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[SkippedImage] = []
    jobs = list(zip(files, hashes, strict=True))
    with target.open("xb") as output:
        for start in range(0, len(jobs), _CHUNK):
            chunk = jobs[start : start + _CHUNK]
            for job, loaded in zip(chunk, map_fn(partial(_load, folder, spec), chunk), strict=True):
                file, decoded = job[0], loaded or _load_large(folder, spec, job)  # in this thread: one at a time
                if isinstance(decoded, str):
                    skipped.append(SkippedImage(file, decoded))
                else:
                    output.write(decoded.pixels.data)
                    kept.append(file)
                    sizes.append((decoded.width, decoded.height))
                listener.progress(len(kept) + len(skipped), len(jobs))
    return kept, sizes, skipped


def _require_enough(folder: Path, usable: int, skipped: Sequence[SkippedImage], others: Mapping[str, int]) -> None:
    if usable >= MIN_IMAGES:
        return
    reasons = "; ".join(f"{entry.path} {entry.reason}" for entry in skipped[:3])
    line = passed_over(others)
    raise CalibrationError(
        f"calibration folder {folder} has {usable} usable images, {len(skipped)} skipped{reasons and f' ({reasons})'}"
        f"{f', {line}' if line else ''}; put at least {MIN_IMAGES} JPEG, PNG, WebP or BMP images there"
    )


def _open(directory: Path, digest: str, spec: InputSpec, found: ImageFolder) -> ImageCache | None:
    """Open the cache in `directory` if it is complete and has this digest."""
    try:
        cache = ImageCache(directory, spec, found)
    except (OSError, *MALFORMED):  # missing or damaged
        return None
    return cache if cache.digest == digest and cache.current else None
