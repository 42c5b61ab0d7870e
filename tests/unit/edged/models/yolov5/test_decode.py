import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from edged.errors import ImageError
from edged.models.yolov5.decode import decode, detect
from edged.spec import DetectionSpec
from tests.support.yolov5_samples import tiny_plan

PLAN = tiny_plan()  # two anchors; strides 4 and 8
HEIGHT, WIDTH = 16, 24
COUNT = (4 * 6 + 2 * 3) * 2


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def expected(raw, index: int) -> list[float]:
    """The definition, for one prediction."""
    level, place = (0, index) if index < 48 else (1, index - 48)
    columns, stride = ((6, 4), (3, 8))[level]
    anchor, cell = place % 2, place // 2
    width, height = PLAN.anchors[level][anchor]
    row, column = divmod(cell, columns)
    s = [sigmoid(value) for value in raw[index].tolist()]
    centre = ((2 * s[0] - 0.5 + column) * stride, (2 * s[1] - 0.5 + row) * stride)
    return [*centre, (2 * s[2]) ** 2 * width, (2 * s[3]) ** 2 * height, *s[4:]]


def test_decoding_follows_the_definition():
    raw = torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(0))
    decoded = decode(raw, PLAN, HEIGHT, WIDTH)
    assert_close(decoded, torch.tensor([expected(raw, index) for index in range(COUNT)]))
    assert_close(decode(torch.stack([raw, raw]), PLAN, HEIGHT, WIDTH)[1], decoded)


def test_outputs_of_another_size_are_refused():
    with pytest.raises(ImageError, match=r"outputs \[60, 8\] are not those of a 24 x 32 input: \[120, 8\]"):
        decode(torch.zeros(COUNT, 8), PLAN, 32, 24)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from([0.001, 0.1, 0.25, 0.9]))
def test_detections_are_the_strongest_scores(seed, multi_label, confidence):
    raw = 3 * torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(seed))
    spec = DetectionSpec(confidence, iou=1.0, max_detections=40, multi_label=multi_label)
    found = detect(raw, PLAN, HEIGHT, WIDTH, spec)
    decoded = decode(raw, PLAN, HEIGHT, WIDTH)
    scores = decoded[:, 4:5] * decoded[:, 5:]
    counted = scores if multi_label else scores.max(1).values
    assert_close(found.scores, counted[counted > confidence].sort(descending=True).values[:40])
    for box, score, kind in zip(found.boxes, found.scores, found.classes, strict=True):
        row = int((scores[:, kind] - score).abs().argmin())
        x, y, width, height = decoded[row, :4]
        assert_close(box, torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2)))


@pytest.mark.parametrize("multi_label", [False, True])
def test_nothing_above_the_confidence_is_no_box(multi_label):
    found = detect(torch.full((COUNT, 8), -9.0), PLAN, HEIGHT, WIDTH, DetectionSpec(multi_label=multi_label))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_overlapping_boxes_of_one_class_become_one():
    raw = torch.full((COUNT, 8), -9.0)
    raw[10, :] = torch.tensor([0, 0, 0, 0, 5, 5, -9, -9])
    raw[11, :] = torch.tensor([0, 0, 0, 0, 4, 5, -9, -9])  # the other anchor of the cell: overlaps by 1/4
    assert len(detect(raw, PLAN, HEIGHT, WIDTH, DetectionSpec(iou=0.3))) == 2
    assert len(detect(raw, PLAN, HEIGHT, WIDTH, DetectionSpec(iou=0.2))) == 1
    raw[11, 5:] = torch.tensor([-9, 5, -9])
    assert detect(raw, PLAN, HEIGHT, WIDTH, DetectionSpec(iou=0.2)).classes.tolist() == [0, 1]
