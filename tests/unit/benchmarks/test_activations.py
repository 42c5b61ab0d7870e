"""Drops below full precision, and their standard errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.quantization.activations import PARTS, Row, jackknife, page, paired
from edged.calibration.yolo_labels import Boxes
from edged.models.detections import Detections


def test_the_drop_is_that_of_the_same_images() -> None:
    hits, reference = np.array([True, True, False, False, True]), np.array([True, True, True, False, False])
    score, drop, error = paired(hits, reference)
    assert (score, drop) == (60.0, 0.0)
    assert error == pytest.approx(100 * np.std([0, 0, 1, 0, -1], ddof=1) / 5**0.5)
    assert paired(reference, reference)[1:] == (0.0, 0.0)


def seen(count: int) -> list[Detections]:
    """Return one box in each image, at its place in the first `count` images and elsewhere in the others."""
    right, wrong = ([[8.0, 8, 24, 24]], [[40.0, 40, 60, 60]])
    score, kind = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.int64)
    return [
        Detections(np.array(right if index < count else wrong, dtype=np.float32), score, kind)
        for index in range(2 * PARTS)
    ]


def test_the_drop_of_map_is_that_of_the_same_images() -> None:
    labels = [Boxes(torch.tensor([[0.125, 0.125, 0.375, 0.375]]), torch.zeros(1, dtype=torch.int64))] * (2 * PARTS)
    sizes = [(64, 64)] * (2 * PARTS)
    assert jackknife(seen(2 * PARTS), seen(2 * PARTS), labels, sizes) == (pytest.approx(100), 0.0, 0.0)
    score, drop, error = jackknife(seen(PARTS // 2), seen(2 * PARTS), labels, sizes)
    assert score == pytest.approx(100 - drop)
    assert drop > 20
    assert 0 < error < drop


def test_the_page_has_a_line_for_each_row() -> None:
    text = page([Row("resnet20", "w4a8", 81.14, -0.11, 0.15, 97.0, 185_000)], "a machine")
    assert "| CIFAR ResNet-20 | w4a8 | 81.03 | 81.14 | -0.11 ± 0.15 | 97.0 | 185 |" in text
    assert "on a machine." in text
