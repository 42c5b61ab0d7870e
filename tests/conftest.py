"""Fixtures that test modules of several rooms need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# One thread, here and in processes that do not choose for themselves: the layers of tests are small, and other tests
# use the other cores. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support.fake_gpu import FakeTensorRt
from tests.support.tasks import DetectionTask, Task
from tests.support.workers import made_once

# The time of an example depends on what else the machine does.
settings.register_profile("edged", deadline=None)
settings.load_profile("edged")


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task(made_once(tmp_path_factory, "task", Task.write))


@pytest.fixture(scope="session")
def detection_task(tmp_path_factory: pytest.TempPathFactory) -> DetectionTask:
    return DetectionTask(made_once(tmp_path_factory, "scenes", DetectionTask.write))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real checkpoints and images."""
    if not os.environ.get("EDGED_DATA"):
        pytest.skip("EDGED_DATA is not set: no real checkpoints and images here")
    return Path(os.environ["EDGED_DATA"])


@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    """TensorRT and cuda-python that are not there, in this process and in its children."""
    fake = FakeTensorRt(monkeypatch)
    yield fake
    fake.forget()
