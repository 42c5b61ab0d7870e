from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edged.calibration.dataset import build_cache
from edged.calibration.yolo_labels import Boxes
from edged.errors import CalibrationError
from edged.evaluation.classification import predict
from edged.evaluation.detection import (
    agreement,
    average_precision,
    average_precision_without,
    detect_all,
    detections_of,
)
from edged.models.detections import Detections
from edged.models.yolov5.decode import detect
from edged.spec import EVALUATION, Fit, InputSpec
from tests.support.pictures import write_png
from tests.support.yolov5_samples import tiny_model, tiny_plan

SIZE = (200, 100)


def seen(*entries: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    boxes, scores, classes = zip(*entries, strict=True) if entries else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int64)
    )


def there(*entries: tuple[tuple[float, float, float, float], int]) -> Boxes:
    boxes, classes = zip(*entries, strict=True) if entries else ((), ())
    shares = torch.tensor(boxes).reshape(-1, 4) / torch.tensor(SIZE * 2)
    return Boxes(shares, torch.tensor(classes, dtype=torch.int64))


def coco(found: list[Detections], labels: list[Boxes], sizes: list[tuple[int, int]]) -> tuple[float, float]:
    """Compute mAP@.5 and mAP@.5:.95 by pycocotools, in percent."""

    def entry(image: int, box: list[float], kind: int, **more: float) -> dict[str, object]:
        wide, high = box[2] - box[0], box[3] - box[1]
        return {"image_id": image, "category_id": kind, "bbox": [*box[:2], wide, high], "area": wide * high, **more}

    truth = [
        entry(image, box, kind, iscrowd=0)
        for image, (label, size) in enumerate(zip(labels, sizes, strict=True))
        for box, kind in zip(label.in_pixels(*size).double().tolist(), label.classes.tolist(), strict=True)
    ]
    boxes = [
        entry(image, box, kind, score=score)
        for image, detections in enumerate(found)
        for box, score, kind in zip(
            detections.boxes.astype(np.float64).tolist(),
            detections.scores.tolist(),
            detections.classes.tolist(),
            strict=True,
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": image} for image in range(len(labels))],
            "annotations": [{**item, "id": number} for number, item in enumerate(truth, 1)],
            "categories": [{"id": kind} for kind in range(80)],
        }
        data.createIndex()
        run = COCOeval(data, data.loadRes(boxes), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return 100 * run.stats[1], 100 * run.stats[0]


def random_task(seed: int, images: int = 20) -> tuple[list[Detections], list[Boxes], list[tuple[int, int]]]:
    """Draw labels, and detections near some of them and elsewhere, some with equal scores."""
    random = np.random.default_rng(seed)
    found, labels, sizes = [], [], []
    for _ in range(images):
        count = random.integers(0, 7)
        corner = random.uniform(0, 70, (count, 2))
        boxes = np.concatenate([corner, corner + random.uniform(5, 30, (count, 2))], 1).astype(np.float32)
        kinds = random.integers(0, 4, count)
        near = np.concatenate([boxes + random.normal(0, 2, boxes.shape) for _ in range(3)])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores = random.integers(1, 12, len(near)) / 12
        guessed = np.where(random.random(len(near)) < 0.8, np.tile(kinds, 3), random.integers(0, 6, len(near)))
        order = np.argsort(-scores, kind="stable")
        found.append(
            Detections(
                near[order].astype(np.float32).reshape(-1, 4),
                scores[order].astype(np.float32),
                guessed[order].astype(np.int64),
            )
        )
        labels.append(Boxes(torch.tensor(boxes / 100), torch.tensor(kinds)))
        sizes.append((100, 100))
    return found, labels, sizes


@pytest.mark.parametrize("seed", range(6))
def test_precision_is_that_of_pycocotools(seed):
    task = random_task(seed)
    score = average_precision(*task)
    assert (score.map50, score.map50_95) == pytest.approx(coco(*task), abs=1e-6)
    assert 5 < score.map50_95 < score.map50 < 95


def test_only_the_hundred_best_of_a_class_count_as_in_pycocotools():
    boxes = np.random.default_rng(0).random((150, 2), np.float32) * 50
    many = Detections(
        np.concatenate((boxes, boxes + 10), 1), np.linspace(1, 0.1, 150, dtype=np.float32), np.zeros(150, np.int64)
    )
    labels = [Boxes(torch.from_numpy(many.boxes[[3, 120]] / 100), torch.zeros(2, dtype=torch.int64))]
    score = average_precision([many], labels, [(100, 100)])
    assert (score.map50, score.map50_95) == pytest.approx(coco([many], labels, [(100, 100)]), abs=1e-6)


def test_precision_matches_values_computed_by_hand():
    box, other = (10.0, 10.0, 50.0, 50.0), (100.0, 10.0, 150.0, 60.0)
    labels = [there((box, 0), (other, 0))]
    assert average_precision([seen((box, 0.9, 0), (other, 0.8, 0))], labels, [SIZE]).map50_95 == pytest.approx(100)
    # The best box is wrong: precision is 1/2 at the recalls up to 1/2, which are 51 of 101.
    wrong = (60.0, 60.0, 90.0, 90.0)
    half = average_precision([seen((wrong, 0.9, 0), (box, 0.8, 0))], labels, [SIZE])
    assert half.map50 == pytest.approx(100 * 51 / 101 / 2)
    assert average_precision([seen((box, 0.9, 1))], labels, [SIZE]).map50 == 0
    assert average_precision([seen()], labels, [SIZE]) == average_precision([seen((box, 0.9, 5))], labels, [SIZE])


def test_precision_requires_labels():
    with pytest.raises(CalibrationError, match="the labels have no boxes"):
        average_precision([seen()], [there()], [SIZE])
    with pytest.raises(CalibrationError, match="cannot score 0 images against 1 labels"):
        average_precision([], [there()], [SIZE])


BOX, NEAR, FAR = (10.0, 10.0, 50.0, 50.0), (12.0, 10.0, 52.0, 50.0), (60.0, 60.0, 90.0, 90.0)


@pytest.mark.parametrize(
    ("reference", "found", "percent"),
    [
        ([seen()], [seen()], 100.0),
        ([seen((BOX, 0.9, 0))], [seen((BOX, 0.3, 0))], 100.0),
        ([seen((BOX, 0.9, 0))], [seen((NEAR, 0.9, 0))], 100.0),
        ([seen((BOX, 0.9, 0))], [seen((BOX, 0.9, 1))], 0.0),
        ([seen((BOX, 0.9, 0))], [seen((FAR, 0.9, 0))], 0.0),
        ([seen((BOX, 0.9, 0))], [seen()], 0.0),
        ([seen()], [seen((BOX, 0.9, 0))], 0.0),
        ([seen((BOX, 0.9, 0), (FAR, 0.8, 0))], [seen((BOX, 0.9, 0))], 100 * 2 / 3),
        ([seen((BOX, 0.9, 0))], [seen((BOX, 0.9, 0), (NEAR, 0.8, 0))], 100 * 2 / 3),  # a box pairs once
        ([seen((BOX, 0.9, 0)), seen()], [seen((BOX, 0.9, 0)), seen((BOX, 0.9, 0))], 100 * 2 / 3),
    ],
)
def test_agreement_matches_values_computed_by_hand(reference, found, percent):
    assert agreement(reference, found) == pytest.approx(percent)


def test_agreement_requires_the_same_images():
    with pytest.raises(CalibrationError, match="cannot compare 2 images with 1"):
        agreement([seen()], [seen(), seen()])


def test_detections_are_in_pixels_of_the_original_images(tmp_path):
    for index in range(40):
        write_png(tmp_path / "images" / f"{index:02}.png", index, height=20 + index, width=64)
    cache = build_cache(tmp_path, tmp_path / "cache", InputSpec(32, 32, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX))
    model, plan, indices = tiny_model(), tiny_plan(), torch.tensor([3, 17, 30])
    found = detect_all(model, plan, cache, indices, batch_size=2)
    raw = predict(model, cache, indices)
    for image, boxes, outputs in zip(indices.tolist(), found, raw, strict=True):
        width, height = cache.sizes[image]
        assert (width, height) == (64, 20 + int(cache.files[image][-6:-4]))
        expected = detect(outputs.numpy(), plan, 32, 32, EVALUATION).in_original(cache.letterbox(image))
        np.testing.assert_allclose(boxes.boxes, expected.boxes, rtol=1e-3, atol=1e-2)
        assert float(boxes.boxes[:, 2].max()) <= width
        assert float(boxes.boxes[:, 3].max()) <= height
    assert [len(entry) for entry in detections_of(raw, plan, cache, indices)] == [len(entry) for entry in found]


def test_scores_without_a_group_are_those_of_the_other_images():
    found, labels, sizes = random_task(3)
    labels[4] = None
    values = average_precision_without(found, labels, sizes, groups=6)
    for group, value in enumerate(values):
        rest = [i for i in range(len(found)) if i % 6 != group]
        expected = average_precision(*([each[i] for i in rest] for each in (found, labels, sizes)))
        assert value == pytest.approx(expected.map50_95)
    assert len(values) == 6


def test_a_group_that_has_all_labels_cannot_be_left_out():
    labels = [there(((0, 0, 50, 50), 0)), there(), there()]
    found = [seen(((0, 0, 50, 50), 0.9, 0)), seen(), seen()]
    assert average_precision_without(found, labels, [SIZE] * 3) == [100.0, 100.0]
