"""Networks trained for the tests, and the images that go with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.support import scenes, trained
from tests.support.yolov5_samples import save_tiny


class Task:
    """Real images of digits, and two networks trained on them.

    Attributes:
        digits: All images.
        calibration: A folder per class, 200 images in all.
        test: A folder per class, 297 other images in all.
        first: A checkpoint.
        second: A checkpoint of the same network, trained from another seed.
    """

    def __init__(self, folder: Path) -> None:
        self.digits = trained.load()
        self.calibration = folder / "calib"
        self.test = folder / "test"
        self.first = folder / "first.pt"
        self.second = folder / "second.pt"

    @classmethod
    def write(cls, folder: Path) -> None:
        """Train the networks and write them and the images."""
        task = cls(folder)
        with _one_thread():
            for seed, path in enumerate((task.first, task.second)):
                torch.save(trained.train(task.digits, epochs=4, seed=seed).state_dict(), path)
        task.digits.write_folders(task.calibration)
        task.digits.write_folders(task.test, trained.TEST)


class DetectionTask:
    """Drawn images with boxes, and YOLOv5 detectors trained on such images.

    Attributes:
        calibration: 80 images with labels.
        test: 40 other images with labels.
        first: A checkpoint as YOLOv5's training leaves it.
        second: A checkpoint of the same network with other biases.
    """

    def __init__(self, folder: Path) -> None:
        self.calibration = folder / "calib"
        self.test = folder / "test"
        self.first = folder / "red.pt"
        self.second = folder / "blue.pt"

    @classmethod
    def write(cls, folder: Path) -> None:
        """Train the network and write both checkpoints and the images."""
        task = cls(folder)
        with _one_thread():
            model = scenes.train(seed=0)
            save_tiny(task.first, model, scenes.plan())
            for head in model.model[-1].m:
                head.bias += 0.1  # slightly more detections
            save_tiny(task.second, model, scenes.plan())
        scenes.write_scenes(task.calibration, range(80))
        scenes.write_scenes(task.test, range(100, 140))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: more of them slow such small layers down, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
