"""The calibration images of one configured model: their folder and their preprocessing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edged.artifacts.store import ModelStore
from edged.calibration.dataset import cache_digest
from edged.calibration.folder import ImageFolder, label_path
from edged.calibration.places import find_images
from edged.errors import EdgedError, UsageError
from edged.json_document import MALFORMED
from edged.models.names import default_input
from edged.spec import InputSpec
from edged.spelling import names_to_choose
from service.config.load import Config, ModelConfig
from service.storage.capture_ring import Ring
from service.storage.garbage import bytes_of
from service.storage.paths import Paths
from service.storage.retention import ring_of
from service.units import iso_time

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class CalibrationSet:
    """The calibration images of one model.

    Attributes:
        model: Configuration of the model.
        input: Preprocessing of the images: that of the live generation, or before there is one, that of the config.
        classes: Class names of the live detector by class id; None if the live generation is not a detector.
        ring: Captured images of live requests.
        caches: Parent folder of the model's caches of decoded images.
    """

    model: ModelConfig
    input: InputSpec
    classes: tuple[str, ...] | None
    ring: Ring
    caches: Path

    @property
    def folder(self) -> Path:
        """The folder of the images, a data.yaml, or a text file with one image a line."""
        return self.model.calibration.dir

    def scan(self) -> ImageFolder:
        """Find the images of the folder or list.

        Raises:
            CalibrationError: The folder cannot be read.
        """
        return find_images(self.folder)

    def labelled(self, found: ImageFolder) -> list[str]:
        """Return the images that have a YOLO label file."""
        return [file for file in found.files if label_path(found.root / file).is_file()]

    def describe(self) -> dict[str, Any]:
        """Describe the calibration set for `edged calib list`, in JSON types."""
        found = self.scan()
        captured = self.ring.entries()
        digest = cache_digest(self.folder, self.input, limit=self.model.calibration.images, map_fn=in_threads)
        return {
            "model": self.model.name,
            "folder": str(self.folder),
            "images": len(found.files),
            "used": min(len(found.files), self.model.calibration.images),
            "bytes": sum((found.root / file).stat().st_size for file in found.files),
            "classes": class_counts(found),
            "labelled": len(self.labelled(found)),
            "split": found.split,
            "passed_over": dict(found.others),
            "input": self.input.to_dict(),
            "digest": digest,
            "cache": "current" if (self.caches / digest[:16]).is_dir() else "outdated" if self._caches() else "none",
            "caches": self._caches(),
            "captured": {
                "images": len(captured),
                "bytes": sum(entry.bytes for entry in captured),
                "oldest": iso_time(captured[0].at) if captured else None,
            },
        }

    def _caches(self) -> list[dict[str, Any]]:
        folders = sorted(self.caches.iterdir()) if self.caches.is_dir() else []
        return [{"name": path.name, "bytes": bytes_of(path)} for path in folders if not path.name.startswith(".")]


def calibration_set(config: Config, name: str) -> CalibrationSet:
    """Return the calibration set of a configured model.

    Raises:
        UsageError: There is no such model.
    """
    model = config.model(name)
    if model is None:
        names = names_to_choose(name, [each.name for each in config.models], "configured:")
        raise UsageError(f"no model {name!r:.80}; {names}")
    paths = Paths(config.state_dir)
    spec, classes = _live(ModelStore(paths.models), model)
    return CalibrationSet(model, spec, classes, ring_of(model, paths.capture(name)), paths.calibration(name))


def class_counts(found: ImageFolder) -> dict[str, int]:
    """Count the images of each class folder; the result is empty without labels."""
    counts = Counter(found.label(file) for file in found.files) if found.classes else {}
    return {name: counts[index] for index, name in enumerate(found.classes)}


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Apply a function to all items on all cores; hashing and decoding release the GIL."""
    with ThreadPoolExecutor(thread_name_prefix="calib") as pool:
        return list(pool.map(function, items))


def _live(store: ModelStore, model: ModelConfig) -> tuple[InputSpec, tuple[str, ...] | None]:
    default, classes = InputSpec() if model.arch is None else default_input(model.arch), None
    with contextlib.suppress(EdgedError, *MALFORMED):
        if (current := store.current(model.name)) is not None:
            manifest = store.manifest(model.name, current)
            default = InputSpec.from_dict(manifest["input"])
            if manifest.get("task") == "detection":
                classes = tuple(manifest["classes"])
    return default.override(model.input.overrides()), classes
