"""What the held-out images show of a quantized model."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from edged.calibration.dataset import ImageCache, build_cache
from edged.calibration.folder import label_path
from edged.calibration.yolo_labels import read_labels
from edged.compress import Compressed, compress
from edged.errors import GateError
from edged.evaluation.detection import agreement, average_precision, detect_all
from edged.models.checkpoint import read_checkpoint
from edged.models.registry import Architecture, load_model, recognize
from edged.pipeline.evaluation import Labels, evaluate, held_out_labels
from edged.spec import DetectionSpec, QuantSpec
from tests.support import scenes
from tests.support.tasks import DetectionTask
from tests.support.yolov5_samples import tiny_model

DETECTOR = Architecture.detector(scenes.plan())
SERVED = DetectionSpec(confidence=0.1)


@pytest.fixture(scope="module")
def cache(detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return build_cache(detection_task.calibration, tmp_path_factory.mktemp("cache"), scenes.INPUT)


@pytest.fixture(scope="module")
def compressed(detection_task: DetectionTask, cache: ImageCache) -> Compressed:
    checkpoint = read_checkpoint(detection_task.first)
    model = load_model(checkpoint.state, recognize(checkpoint.state, None, checkpoint.plan))
    return compress(model, cache, QuantSpec(bits=4))


def test_a_detector_is_compared_by_its_boxes_and_by_map(
    compressed: Compressed, cache: ImageCache, detection_task: DetectionTask
) -> None:
    labels = held_out_labels(cache, DETECTOR)
    evaluation = evaluate(compressed, DETECTOR, labels, SERVED)
    totals = evaluation.totals
    files = [cache.files[index] for index in cache.held_out.tolist()]
    truth = read_labels(detection_task.calibration, files).boxes
    sizes = [(scenes.WIDTH, scenes.HEIGHT)] * len(files)
    assert (totals["task"], totals["held_out_images"]) == ("detection", len(files))
    served = {}
    for key, model in (("fp32", compressed.full), ("quantized", compressed.model)):
        served[key] = detect_all(model, scenes.plan(), cache, cache.held_out, SERVED)
        score = average_precision(detect_all(model, scenes.plan(), cache, cache.held_out), truth, sizes)
        assert totals[key] == pytest.approx({"map50": score.map50, "map50_95": score.map50_95}, abs=0.5)
        assert totals["boxes"][key] == pytest.approx(sum(map(len, served[key])), abs=1)
    assert totals["fp32"]["map50"] > 50
    assert totals["agreement"] == pytest.approx(agreement(served["fp32"], served["quantized"]), abs=5)
    assert totals["drop"] == {key: totals["fp32"][key] - totals["quantized"][key] for key in ("map50", "map50_95")}
    assert 0 < totals["relative_error"] < 0.2


def test_without_labels_only_agreement_is_told(compressed: Compressed, cache: ImageCache) -> None:
    totals = evaluate(compressed, DETECTOR, Labels(), SERVED).totals
    assert totals.keys() == {"task", "held_out_images", "agreement", "relative_error", "variation", "boxes"}
    assert all(value > 0.01 for value in totals["variation"].values())
    assert totals["variation"].keys() == {"fp32", "quantized"}


def test_a_detector_whose_outputs_are_not_finite_is_refused(compressed: Compressed, cache: ImageCache) -> None:
    broken = tiny_model(scenes.plan())
    broken.model[0].conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(GateError, match="NaN or infinity"):
        evaluate(dataclasses.replace(compressed, model=broken), DETECTOR, Labels(), SERVED)


def write_labels(folder: Path, text: str) -> Path:
    scenes.write_scenes(folder, range(40), labels=False)
    (folder / "labels").mkdir()
    for seed in range(40):
        (folder / "labels" / f"{seed:05}.txt").write_text(text)
    return folder


@pytest.mark.parametrize("text", ["", "3 0.5 0.5 0.2 0.2\n"], ids=["no box", "a class that the model lacks"])
def test_labels_that_say_nothing_of_the_model_do_not_count(tmp_path: Path, text: str) -> None:
    folder = write_labels(tmp_path / "images-of-others", text)
    cache = build_cache(folder, tmp_path / "cache", scenes.INPUT)
    assert not held_out_labels(cache, DETECTOR)


def test_a_bad_label_leaves_its_image_out_of_the_score(
    compressed: Compressed, cache: ImageCache, detection_task: DetectionTask, tmp_path: Path
) -> None:
    shutil.copytree(detection_task.calibration, tmp_path / "data")
    files = [cache.files[index] for index in cache.held_out.tolist()]
    (tmp_path / "data" / label_path(Path(files[2]))).write_text("0 0.5 0.5\n")
    spoiled = build_cache(tmp_path / "data", tmp_path / "cache", scenes.INPUT)
    assert spoiled.digest == cache.digest
    labels = held_out_labels(spoiled, DETECTOR)
    assert labels.boxes is not None
    assert [index for index, boxes in enumerate(labels.boxes) if boxes is None] == [2]
    [note] = labels.notes
    assert re.fullmatch(r"1 image is left out for its labels: labels/\d+\.txt, line 1, class 0: 3 numbers.*", note)
    totals = evaluate(compressed, DETECTOR, labels, SERVED).totals
    sizes = [(scenes.WIDTH, scenes.HEIGHT)] * (len(files) - 1)
    found = detect_all(compressed.model, scenes.plan(), cache, cache.held_out)
    truth = read_labels(tmp_path / "data", files).boxes
    left = [index for index in range(len(files)) if index != 2]
    score = average_precision([found[index] for index in left], [truth[index] for index in left], sizes)
    assert totals["quantized"] == pytest.approx({"map50": score.map50, "map50_95": score.map50_95}, abs=0.5)
    assert totals["held_out_images"] == len(files)


def test_labels_that_are_all_wrong_do_not_count(tmp_path: Path) -> None:
    folder = write_labels(tmp_path / "wrong", "0 0.5 0.5\n")
    labels = held_out_labels(build_cache(folder, tmp_path / "cache", scenes.INPUT), DETECTOR)
    assert not labels
    assert "8 images are left out" in labels.notes[0]


def test_classes_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    folder = write_labels(tmp_path / "others", "0 0.5 0.5 0.2 0.2\n3 0.5 0.5 0.2 0.2\n")
    labels = held_out_labels(build_cache(folder, tmp_path / "cache", scenes.INPUT), DETECTOR)
    assert not labels
    assert "8 boxes in 8 files of classes that the model lacks, such as class 3 in labels/" in labels.notes[0]
