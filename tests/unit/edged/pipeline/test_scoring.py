"""Accuracy or mAP of a checkpoint on labeled images."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.calibration.dataset import build_cache
from edged.errors import UsageError
from edged.pipeline.scoring import open_scorable, score
from edged.progress import SilentListener
from tests.support import scenes
from tests.support.tasks import DetectionTask, Task


def test_a_classifier_is_scored_by_top1_and_top5(task: Task, tmp_path: Path) -> None:
    network = open_scorable(task.first, None, {"size": 8, "resize": 8})
    result = score(network, build_cache(task.test, tmp_path, network.input), task.test, SilentListener())
    assert result["top5"] >= result["top1"] > 95
    assert (result["task"], result["images"], result["classes"]) == ("classification", 297, 10)


def test_a_detector_is_scored_by_map(detection_task: DetectionTask, tmp_path: Path) -> None:
    network = open_scorable(detection_task.first, "yolov5", {"size": scenes.SIDE})
    cache = build_cache(detection_task.test, tmp_path, network.input)
    result = score(network, cache, detection_task.test, SilentListener())
    assert result["map50"] > 50
    assert (result["task"], result["images"]) == ("detection", 40)


def test_images_without_labels_cannot_score_a_detector(detection_task: DetectionTask, tmp_path: Path) -> None:
    bare = scenes.write_scenes(tmp_path / "bare", range(40), labels=False)
    network = open_scorable(detection_task.first, None, {"size": scenes.SIDE})
    with pytest.raises(UsageError, match="has no label files"):
        score(network, build_cache(bare, tmp_path / "cache", network.input), bare, SilentListener())
