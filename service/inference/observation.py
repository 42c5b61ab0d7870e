"""What a generation does with some requests after it has answered them, in a thread that gives way to all else.

An image is kept for calibration, or its colors are compared with those of the calibration images. Nothing of this can
fail or delay an answer: at most a few images wait, more are left out, and what goes wrong is counted.
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
from torch import Tensor

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

RECENT = 256  # images that the drift is computed from; fewer say less, more say it later
ENOUGH = 128  # of them before there is a figure: by chance alone, 64 images are as far off as 0.1
_WAITING = 2
_LEVEL_TOLERANCE = 0.1  # of 255: FP16 is no more exact than that
STORED, LEFT_OUT, NO_IMAGE, FAILED = "stored", "left_out", "no_image", "failed"

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Seen:
    """One image of a request: its file where it had one, and the network's input float32 [channels, size, size]."""

    order: Mapping[str, Any]
    file: bytes | None
    image: Tensor


class Observation:
    """Looks at requests that were answered.

    Args:
        spec: What the model reads.
        reference: Colours of the calibration images [axes, BINS]; None where they are not known.
        tell: Told {"capture": result or None, "drift": figure or None, "drift_images": their number}. In any thread.
    """

    def __init__(self, spec: InputSpec, reference: Histograms | None, tell: Tell) -> None:
        self._spec = spec
        self._tell = tell
        self._drift = None if reference is None else Drift(reference)
        self._queue: queue.Queue[_Seen] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def offer(self, order: Mapping[str, Any], request: Request) -> None:
        """Have a random image of a request looked at, as service.serving.sampling ordered it. Returns at once."""
        index = random.randrange(len(request.images))  # noqa: S311 - a sample, no secret
        file = bytes(request.files[index]) if request.files and order["capture"] else None
        # Copies: the request's memory may be large, and is not to be held.
        seen = _Seen(order, file, request.images[index].clone())
        try:
            self._queue.put_nowait(seen)
        except queue.Full:
            if order["capture"]:
                self._tell({"capture": LEFT_OUT, "drift": None, "drift_images": 0})
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="observation", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            seen = self._queue.get()
            try:
                told = self._look(seen)
            except Exception:  # whatever an image does: the next ones are looked at
                log.exception("an image of a request cannot be looked at")
                told = {"capture": FAILED if seen.order["capture"] else None, "drift": None, "drift_images": 0}
            try:
                self._tell(told)
            except OSError:  # the supervisor went away
                return

    def _look(self, seen: _Seen) -> dict[str, Any]:
        capture = None if seen.order["capture"] is None else self._capture(seen)
        figure, images = None, 0
        if seen.order["drift"] and self._drift is not None:
            self._drift.add(intensities(seen.image, self._spec))
            figure, images = self._drift.figure(), self._drift.images
        return {"capture": capture, "drift": figure, "drift_images": images}

    def _capture(self, seen: _Seen) -> str:
        try:
            if seen.file is not None:
                data, suffix = seen.file, suffix_of(seen.file)
            elif (made := as_png(seen.image, self._spec)) is not None:
                data, suffix = made, ".png"
            else:
                return NO_IMAGE
            return STORED if Ring.from_dict(seen.order["capture"]).add(data, suffix, time.time()) else LEFT_OUT
        except (OSError, MemoryError, ImageError):
            return FAILED


def observing(served: ServedModel, outbox: Outbox) -> Observation:
    """The observation of a model, which tells the supervisor."""
    return Observation(served.input, served.color_histogram, lambda told: outbox.send({"kind": OBSERVED, **told}))


class Drift:
    """How far the colors of the last images are from the calibration images'.

    Args:
        reference: [axes, BINS].
    """

    def __init__(self, reference: Histograms) -> None:
        self._reference = reference
        self._recent: deque[Histograms] = deque(maxlen=RECENT)

    @property
    def images(self) -> int:
        """How many it is computed from."""
        return len(self._recent)

    def add(self, pixels: npt.NDArray[np.generic]) -> None:
        """One more image, intensities 0 to 255 [channels, size, size]; the oldest goes."""
        self._recent.append(color_histograms(pixels[None])[0])

    def figure(self) -> float | None:
        """The population stability index; None while there are fewer than ENOUGH images."""
        if len(self._recent) < ENOUGH:
            return None
        return population_stability(self._reference, np.mean(self._recent, axis=0))


def intensities(image: Tensor, spec: InputSpec) -> npt.NDArray[np.float32]:
    """The opposite of `normalize`: intensities from 0 to 255, [channels, size, size].

    By numpy: torch would start threads of its own for this one.
    """
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (spec.mean, spec.std))
    values: npt.NDArray[np.float32] = (image.numpy() * std + mean) * np.float32(255)
    return values


def as_png(image: Tensor, spec: InputSpec) -> bytes | None:
    """A prepared tensor as an image that calibration reads as the very same tensor; None if it is none.

    What was cropped away is replaced by a border, for the reader to cut off again.

    Args:
        image: float32 [channels, size, size].
        spec: What the model reads.
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
