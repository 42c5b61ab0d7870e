"""What several test modules need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support import scenes, trained
from tests.support.tasks import DetectionTask, Task
from tests.support.yolov5_samples import save_tiny


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Made once a session."""
    folder = tmp_path_factory.mktemp("task")
    digits = trained.load()
    paths = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small layers only lose by more, above all on a machine that is busy
    for seed, name in enumerate(("first.pt", "second.pt")):
        model = trained.train(digits, epochs=4, seed=seed)
        torch.save(model.state_dict(), folder / name)
        paths.append(folder / name)
    torch.set_num_threads(threads)
    test = digits.write_folders(folder / "test", trained.TEST)
    return Task(digits, digits.write_folders(folder / "calib"), test, *paths)


@pytest.fixture(scope="session")
def detection_task(tmp_path_factory: pytest.TempPathFactory) -> DetectionTask:
    """Made once a session."""
    folder = tmp_path_factory.mktemp("scenes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = scenes.train(seed=0)
    first = save_tiny(folder / "red.pt", model, scenes.plan())
    for head in model.model[-1].m:
        head.bias += 0.1  # a little readier to see something
    second = save_tiny(folder / "blue.pt", model, scenes.plan())
    torch.set_num_threads(threads)
    calibration = scenes.write_scenes(folder / "calib", range(80))
    return DetectionTask(calibration, scenes.write_scenes(folder / "test", range(100, 140)), first, second)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real checkpoints and images."""
    if not os.environ.get("EDGED_DATA"):
        pytest.skip("EDGED_DATA is not set: no real checkpoints and images here")
    return Path(os.environ["EDGED_DATA"])
