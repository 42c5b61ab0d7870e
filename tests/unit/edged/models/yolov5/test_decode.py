import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from edged.errors import ImageError
from edged.models.yolov5.decode import corners_of, decode, decode_some, detect, logit
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
    raw = np.random.default_rng(0).standard_normal((COUNT, 8), np.float32)
    decoded = decode(raw, PLAN, HEIGHT, WIDTH)
    assert decoded.dtype == np.float32
    assert_allclose(decoded, [expected(raw, index) for index in range(COUNT)], rtol=1e-5, atol=1e-5)
    assert_allclose(decode(np.stack([raw, raw]), PLAN, HEIGHT, WIDTH)[1], decoded)


def test_some_predictions_are_decoded_as_all_are():
    raw = np.random.default_rng(1).standard_normal((COUNT, 8), np.float32)
    chosen = np.array([3, 47, 48, 59])
    assert (decode_some(raw, chosen, PLAN, HEIGHT, WIDTH) == decode(raw, PLAN, HEIGHT, WIDTH)[chosen]).all()
    with pytest.raises(ImageError, match=r"are not those of a 24 x 32 input"):
        decode_some(raw, chosen, PLAN, 32, 24)


def test_corners_are_half_a_size_away_from_the_center():
    assert corners_of(np.array([[10.0, 20.0, 4.0, 6.0]])).tolist() == [[8.0, 17.0, 12.0, 23.0]]


@pytest.mark.parametrize("probability", [0.001, 0.25, 0.5, 0.9])
def test_the_logit_is_the_output_with_that_probability(probability):
    assert sigmoid(logit(probability)) == pytest.approx(probability)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_threshold_at_the_end_of_the_range_has_no_output(probability):
    assert logit(probability) == -math.inf


def test_outputs_of_another_size_are_refused():
    with pytest.raises(ImageError, match=r"outputs \[60, 8\] are not those of a 24 x 32 input: \[120, 8\]"):
        decode(np.zeros((COUNT, 8), np.float32), PLAN, 32, 24)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from([0.001, 0.1, 0.25, 0.9]))
def test_detections_are_the_strongest_scores(seed, multi_label, confidence):
    raw = 3 * np.random.default_rng(seed).standard_normal((COUNT, 8), np.float32)
    spec = DetectionSpec(confidence, iou=1.0, max_detections=40, multi_label=multi_label)
    found = detect(raw, PLAN, HEIGHT, WIDTH, spec)
    decoded = decode(raw, PLAN, HEIGHT, WIDTH)
    scores = decoded[:, 4:5] * decoded[:, 5:]
    counted = scores if multi_label else scores.max(1)
    assert_allclose(found.scores, np.sort(counted[counted > confidence])[::-1][:40])
    for box, score, kind in zip(found.boxes, found.scores, found.classes, strict=True):
        row = int(np.abs(scores[:, kind] - score).argmin())
        x, y, width, height = decoded[row, :4]
        assert_allclose(box, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_nothing_above_the_confidence_is_no_box(multi_label):
    found = detect(np.full((COUNT, 8), -9.0, np.float32), PLAN, HEIGHT, WIDTH, DetectionSpec(multi_label=multi_label))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_overlapping_boxes_of_one_class_become_one():
    raw = np.full((COUNT, 8), -9.0, np.float32)
    raw[10, :] = [0, 0, 0, 0, 5, 5, -9, -9]
    raw[11, :] = [0, 0, 0, 0, 4, 5, -9, -9]  # the other anchor of the cell: overlaps by 1/4
    assert len(detect(raw, PLAN, HEIGHT, WIDTH, DetectionSpec(iou=0.3))) == 2
    assert len(detect(raw, PLAN, HEIGHT, WIDTH, DetectionSpec(iou=0.2))) == 1
    raw[11, 5:] = [-9, 5, -9]
    assert detect(raw, PLAN, HEIGHT, WIDTH, DetectionSpec(iou=0.2)).classes.tolist() == [0, 1]


def test_no_number_overflows():
    raw = np.full((COUNT, 8), -3e38, np.float32)
    raw[:, ::2] = 3e38
    decoded = decode(raw, PLAN, HEIGHT, WIDTH)
    assert np.isfinite(decoded).all()
    assert set(np.unique(decoded[:, 4:])) == {0.0, 1.0}
