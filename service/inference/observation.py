"""Observation of sampled requests after their reply, in a thread of the lowest priority.

An image is kept for calibration, or its colors are compared with those of the calibration images. Observation never
fails or delays a reply: at most a few images wait, further ones are left out, and errors are counted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edged.calibration.color_histograms import Histograms, color_histograms, population_stability
from edged.calibration.images import suffix_of
from edged.errors import ImageError
from edged.spec import Fit, InputSpec
from service.inference.requests import Request
from service.ipc.frames import OBSERVED, Outbox
from service.storage.capture_ring import Ring

if TYPE_CHECKING:
    from service.inference.model import ServedModel

log = logging.getLogger(__name__)

RECENT = 256  # images that the drift is computed from: fewer are less reliable, more react later
ENOUGH = 128  # images before the drift is reported: 64 images differ by up to 0.1 by chance alone
_WAITING = 2
_LEVEL_TOLERANCE = 0.1  # of 255 levels: the precision of FP16
STORED, LEFT_OUT, NO_IMAGE, FAILED = "stored", "left_out", "no_image", "failed"

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Sample:
    """One image of a sampled request.

    Attributes:
        directive: What to do with it, see service.serving.sampling.
        file: Encoded file; None if the request has a tensor or the file is not needed.
        image: Network input float32 [channels, size, size].
    """

    directive: Mapping[str, Any]
    file: bytes | None
    image: npt.NDArray[np.float32]


class Observation:
    """Captures images of sampled requests, and measures their drift.

    Args:
        spec: Input of the model.
        reference: Color histograms of the calibration images [axes, BINS]; None if they are not known.
        report: Called from any thread with {"capture": result or None, "drift": index or None, "drift_images": number
            of images that it is computed from}.
    """

    def __init__(self, spec: InputSpec, reference: Histograms | None, report: Report) -> None:
        self._spec = spec
        self._report = report
        self._drift = None if reference is None else Drift(reference)
        self._queue: queue.Queue[_Sample] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def offer(self, directive: Mapping[str, Any], request: Request) -> None:
        """Queue a random image of a sampled request. Returns at once.

        Args:
            directive: What to do with it, see service.serving.sampling.
            request: The request, which was answered.
        """
        index = random.randrange(len(request.images))  # noqa: S311 - a sample, no secret
        file = bytes(request.files[index]) if request.files and directive["capture"] else None
        # Copies: the request's memory may be large and must not be kept.
        sample = _Sample(directive, file, request.images[index].copy())
        try:
            self._queue.put_nowait(sample)
        except queue.Full:
            if directive["capture"]:
                self._report({"capture": LEFT_OUT, "drift": None, "drift_images": 0})
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="observation", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # sets the niceness of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            sample = self._queue.get()
            try:
                observed = self._observe(sample)
            except Exception:  # one image must not end the thread
                log.exception("cannot observe an image of a request")
                capture = FAILED if sample.directive["capture"] else None
                observed = {"capture": capture, "drift": None, "drift_images": 0}
            try:
                self._report(observed)
            except OSError:  # the supervisor closed the stream
                return

    def _observe(self, sample: _Sample) -> dict[str, Any]:
        capture = None if sample.directive["capture"] is None else self._capture(sample)
        index, images = None, 0
        if sample.directive["drift"] and self._drift is not None:
            self._drift.add(intensities(sample.image, self._spec))
            index, images = self._drift.index(), self._drift.images
        return {"capture": capture, "drift": index, "drift_images": images}

    def _capture(self, sample: _Sample) -> str:
        try:
            if sample.file is not None:
                data, suffix = sample.file, suffix_of(sample.file)
            elif (encoded := as_png(sample.image, self._spec)) is not None:
                data, suffix = encoded, ".png"
            else:
                return NO_IMAGE
            return STORED if Ring.from_dict(sample.directive["capture"]).add(data, suffix, time.time()) else LEFT_OUT
        except (OSError, MemoryError, ImageError):
            return FAILED


def observing(served: ServedModel, outbox: Outbox) -> Observation:
    """Create the observation of a model, which reports to the supervisor."""
    return Observation(served.input, served.color_histogram, lambda found: outbox.send({"kind": OBSERVED, **found}))


class Drift:
    """Measures how far the colors of the latest images are from those of the calibration images.

    Args:
        reference: Color histograms of the calibration images [axes, BINS].
    """

    def __init__(self, reference: Histograms) -> None:
        self._reference = reference
        self._recent: deque[Histograms] = deque(maxlen=RECENT)

    @property
    def images(self) -> int:
        """Number of images that the drift is computed from."""
        return len(self._recent)

    def add(self, pixels: npt.NDArray[np.generic]) -> None:
        """Add an image, intensities 0 to 255 [channels, size, size], and drop the oldest one over RECENT."""
        self._recent.append(color_histograms(pixels[None])[0])

    def index(self) -> float | None:
        """Return the population stability index; None while there are fewer than ENOUGH images."""
        if len(self._recent) < ENOUGH:
            return None
        return population_stability(self._reference, np.mean(self._recent, axis=0))


def intensities(image: npt.NDArray[np.float32], spec: InputSpec) -> npt.NDArray[np.float32]:
    """Invert `normalize`: return intensities from 0 to 255, [channels, size, size]."""
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (spec.mean, spec.std))
    values: npt.NDArray[np.float32] = (image * std + mean) * np.float32(255)
    return values


def as_png(image: npt.NDArray[np.float32], spec: InputSpec) -> bytes | None:
    """Encode a prepared tensor as an image that calibration reads as the same tensor.

    A border replaces the parts that were cropped away; the reader crops it off again.

    Args:
        image: Network input float32 [channels, size, size].
        spec: Input of the model.

    Returns:
        A PNG; None if the tensor holds other values than the 256 intensities.
    """
    values = intensities(image, spec)
    levels = values.round()
    if np.abs(values - levels).max() > _LEVEL_TOLERANCE or levels.min() < 0 or levels.max() > 255:
        return None
    pixels = levels.astype(np.uint8)
    if spec.fit is not Fit.LETTERBOX:
        before = round((spec.resize - spec.size) / 2.0)
        border = (before, spec.resize - spec.size - before)
        pixels = np.pad(pixels, ((0, 0), border, border), mode="edge")
    encoded = io.BytesIO()
    made = Image.fromarray(pixels[0] if spec.channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    made.save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()
