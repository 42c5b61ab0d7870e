"""Networks trained for the tests, and the images that go with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support import trained


@dataclass(frozen=True)
class Task:
    """Real images and two networks trained on them.

    Attributes:
        digits: The images.
        calibration: 200 of them, a folder per class.
        test: 297 others, likewise.
        first: A checkpoint.
        second: Another one.
    """

    digits: trained.Digits
    calibration: Path
    test: Path
    first: Path
    second: Path


@dataclass(frozen=True)
class DetectionTask:
    """Made images with boxes, and YOLOv5 detectors trained on such.

    Attributes:
        calibration: 80 images with labels.
        test: 40 others, likewise.
        first: A checkpoint as YOLOv5's training leaves it.
        second: Much the same network with other biases.
    """

    calibration: Path
    test: Path
    first: Path
    second: Path
