"""A folder of images as a decoded uint8 cache on disk, memory-mapped, keyed by contents and preprocessing.

A cache is the folder <cache_root>/<first 16 digits of its digest> with two files:
    images.u8    uint8 [n, channels, size, size], C order
    meta.json    digest, files, labels, classes, skipped; for letterboxes also sizes
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edged.atomic import as_state_error, fsync_tree, rename_into_place, temporary_sibling
from edged.calibration.color_histograms import Histograms, color_histograms
from edged.calibration.folder import ImageFolder, SkippedImage, deal, scan, select
from edged.calibration.images import Decoded, decode, normalize, read_image
from edged.calibration.letterbox import Letterbox
from edged.errors import CalibrationError, ImageError
from edged.progress import ProgressListener, SilentListener
from edged.spec import Fit, InputSpec

MIN_IMAGES = 32  # fewer say too little of the layers' inputs
MIN_HELD_OUT = 8
_LAYOUT = 1  # part of the digest: caches of another layout or another decoding are not found
_COLOR_IMAGES = 512  # more would tell the same
_COLOR_BATCH = 16
_CHUNK = 64  # images in flight: bounds memory when map_fn runs ahead of the writer

MapFn = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class ImageCache:
    """Decoded images of one calibration folder for one input size.

    Attributes:
        directory: Where the cache lies.
        digest: Hex sha256 of the images' names and contents, and of sizes and channels.
        input: How images are prepared. Mean and std act in `batch`, so caches serve any of them.
        files: Path of each image relative to its folder.
        labels: Class index of each image, int64 [n]; None where the folder gives no labels.
        classes: Names by class index; empty without labels.
        sizes: Width and height of each image before it was scaled, for letterboxes; otherwise empty.
        skipped: Image files that could not be used.
        images: uint8 [n, channels, size, size], read-only, mapped from the disk.
        held_out: Indices kept for evaluation, ascending: a tenth, at least MIN_HELD_OUT, balanced over classes.
        calibration: All other indices, ascending. Both are int64.
    """

    def __init__(self, directory: Path, spec: InputSpec, skipped: Sequence[SkippedImage] = ()) -> None:
        meta = json.loads((directory / "meta.json").read_bytes())
        self.directory = directory
        self.input = spec
        self.digest: str = meta["digest"]
        self.files: tuple[str, ...] = tuple(meta["files"])
        self.classes: tuple[str, ...] = tuple(meta["classes"])
        self.labels = torch.tensor(meta["labels"], dtype=torch.int64) if self.classes else None
        self.sizes: tuple[tuple[int, int], ...] = tuple((wide, high) for wide, high in meta.get("sizes", ()))
        self.skipped = (*skipped, *(SkippedImage(**entry) for entry in meta["skipped"]))
        shape = (len(self.files), spec.channels, spec.size, spec.size)
        with (directory / "images.u8").open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.images: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8).reshape(shape)
        self.calibration, self.held_out = _split(meta["labels"])

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Tensor) -> Tensor:
        """Normalized images, float32 [len(indices), channels, size, size], contiguous.

        Args:
            indices: int64 [b].
        """
        return normalize(torch.from_numpy(self.pixels(indices)), self.input)

    def pixels(self, indices: Tensor) -> npt.NDArray[np.uint8]:
        """Images as they were decoded, uint8 [len(indices), channels, size, size]; a copy.

        Args:
            indices: int64 [b].
        """
        pixels: npt.NDArray[np.uint8] = self.images[indices.numpy()]
        # Pages read stay in the page cache; left mapped they would also count as this process's memory.
        self._map.madvise(mmap.MADV_DONTNEED)
        return pixels

    def color_histogram(self) -> Histograms:
        """Mean histograms of calibration images, at most _COLOR_IMAGES of them evenly chosen, [axes, BINS]."""
        step = -(-len(self.calibration) // _COLOR_IMAGES)
        chosen = self.calibration[::step]
        parts = [
            color_histograms(self.pixels(chosen[start : start + _COLOR_BATCH])).sum(axis=0)
            for start in range(0, len(chosen), _COLOR_BATCH)
        ]
        return np.asarray(np.sum(parts, axis=0) / len(chosen), np.float64)

    def batches(self, indices: Tensor, batch_size: int) -> Iterator[Tensor]:
        """`batch` of each run of `batch_size` indices; the last may be smaller."""
        for start in range(0, len(indices), batch_size):
            yield self.batch(indices[start : start + batch_size])

    def letterbox(self, index: int) -> Letterbox:
        """Where an image lies in its square; for caches of letterboxes only."""
        return Letterbox(*self.sizes[index], self.input.size)

    def labels_of(self, indices: Tensor) -> Tensor | None:
        """Class indices int64 [len(indices)], None without labels."""
        return None if self.labels is None else self.labels[indices]


def build_cache(
    folder: Path,
    cache_root: Path,
    spec: InputSpec,
    *,
    limit: int | None = None,
    map_fn: MapFn = map,
    listener: ProgressListener | None = None,
) -> ImageCache:
    """The cache of `folder`; decoded only if no cache of the same contents and preprocessing exists.

    Args:
        folder: Images (JPEG, PNG, WebP, BMP), nested or not; see `edged.calibration.folder.scan` for labels.
        cache_root: Holds one folder a cache. Older caches are left alone.
        spec: Size, resize and channels to prepare for.
        limit: Most images to use, chosen before decoding, balanced over classes; None for all.
        map_fn: `map` or an executor's; results must come in order.
        listener: Told of images done.

    Raises:
        CalibrationError: The folder is missing or holds fewer than MIN_IMAGES usable images.
        StateError: The cache cannot be written.
    """
    listener = listener or SilentListener()
    found, files, hashes = _identify(folder, limit, map_fn)
    digest = _digest(spec, found.classes, files, hashes)
    directory = cache_root / digest[:16]
    if (cache := _open(directory, digest, spec, found.skipped)) is not None:
        return cache
    temporary = temporary_sibling(directory)
    with as_state_error(cache_root):
        temporary.mkdir(parents=True)
        try:
            kept, sizes, skipped = _decode_all(folder, files, hashes, temporary / "images.u8", spec, map_fn, listener)
            _require_enough(folder, len(kept), [*found.skipped, *skipped])
            meta = {
                "digest": digest,
                "files": kept,
                "labels": [found.label(file) if found.classes else 0 for file in kept],
                "classes": found.classes,
                "skipped": [vars(entry) for entry in skipped],
                **({"sizes": sizes} if spec.fit is Fit.LETTERBOX else {}),
            }
            (temporary / "meta.json").write_text(json.dumps(meta))
            fsync_tree(temporary)
            # A process beside this one may have finished the same cache by now; anything else there is damaged.
            if _open(directory, digest, spec, found.skipped) is None:
                shutil.rmtree(directory, ignore_errors=True)
                rename_into_place(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return ImageCache(directory, spec, found.skipped)


def cache_digest(folder: Path, spec: InputSpec, *, limit: int | None = None, map_fn: MapFn = map) -> str:
    """The digest that `build_cache` would give the cache of `folder` now; reads every image, decodes none.

    Raises:
        CalibrationError: The folder is missing.
    """
    found, files, hashes = _identify(folder, limit, map_fn)
    return _digest(spec, found.classes, files, hashes)


def _identify(folder: Path, limit: int | None, map_fn: MapFn) -> tuple[ImageFolder, tuple[str, ...], list[str]]:
    """What is in a folder, which files of it are used, and the sha256 of each."""
    found = scan(folder)
    files = select(found, limit)
    return found, files, _hash_files(folder, files, map_fn)


def _split(labels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Indices for calibration and held out, both ascending; the held-out ones are dealt class by class."""
    count = max(MIN_HELD_OUT, round(len(labels) / 10))
    held_out = set(deal(labels)[:count])
    rest = [index for index in range(len(labels)) if index not in held_out]
    return torch.tensor(rest), torch.tensor(sorted(held_out))


def _digest(spec: InputSpec, classes: Sequence[str], files: Sequence[str], hashes: Sequence[str]) -> str:
    preprocessing: list[int | str] = [_LAYOUT, spec.size, spec.resize, spec.channels]
    if spec.fit is Fit.LETTERBOX:
        preprocessing[2] = spec.fit.value  # caches of crops keep the digest that they had before there was another fit
    return hashlib.sha256(json.dumps([preprocessing, classes, files, hashes]).encode()).hexdigest()


def _hash_files(folder: Path, files: Sequence[str], map_fn: MapFn) -> list[str]:
    return list(map_fn(partial(_hash_file, folder), files))


def _hash_file(folder: Path, file: str) -> str:
    try:
        return hashlib.sha256(read_image(folder / file)).hexdigest()
    except ImageError as error:
        return str(error)  # decoding will say the same and skip the file


def _load(folder: Path, spec: InputSpec, job: tuple[str, str]) -> Decoded | str:
    """One file, or the reason why it cannot be used."""
    file, expected = job
    try:
        data = read_image(folder / file)
        if hashlib.sha256(data).hexdigest() != expected:
            return "changed while it was read"
        return decode(data, spec)
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
    """Write the pixels of each usable file to `target`, one after another; returns who is in, its size, who is not."""
    kept: list[str] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[SkippedImage] = []
    jobs = list(zip(files, hashes, strict=True))
    with target.open("xb") as output:
        for start in range(0, len(jobs), _CHUNK):
            chunk = jobs[start : start + _CHUNK]
            for (file, _), decoded in zip(chunk, map_fn(partial(_load, folder, spec), chunk), strict=True):
                if isinstance(decoded, str):
                    skipped.append(SkippedImage(file, decoded))
                else:
                    output.write(decoded.pixels.data)
                    kept.append(file)
                    sizes.append((decoded.width, decoded.height))
                listener.progress(len(kept) + len(skipped), len(jobs))
    return kept, sizes, skipped


def _require_enough(folder: Path, usable: int, skipped: Sequence[SkippedImage]) -> None:
    if usable >= MIN_IMAGES:
        return
    reasons = "; ".join(f"{entry.path} {entry.reason}" for entry in skipped[:3])
    raise CalibrationError(
        f"calibration folder {folder} has {usable} usable images, {len(skipped)} skipped{reasons and f' ({reasons})'};"
        f" put at least {MIN_IMAGES} JPEG, PNG, WebP or BMP images there"
    )


def _open(directory: Path, digest: str, spec: InputSpec, skipped: Sequence[SkippedImage]) -> ImageCache | None:
    """The cache in `directory` if it is whole and is the one asked for."""
    try:
        cache = ImageCache(directory, spec, skipped)
    except (OSError, ValueError, KeyError, TypeError):  # none there, or a damaged one
        return None
    return cache if cache.digest == digest else None
