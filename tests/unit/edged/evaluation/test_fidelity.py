import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edged.calibration.dataset import build_cache
from edged.errors import CalibrationError
from edged.evaluation.classification import predict
from edged.evaluation.fidelity import Fidelity, detection_error, fidelity, relative_errors
from edged.models.nms import pairwise_iou
from edged.models.yolov5.decode import decode
from edged.spec import InputSpec
from tests.support.pictures import write_folder
from tests.support.yolov5_samples import tiny_plan


def test_a_model_agrees_with_itself() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert fidelity(logits, logits) == Fidelity(100.0, 0.0)


def test_fidelity_matches_values_computed_by_hand() -> None:
    reference = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    logits = torch.tensor([[3.0, 4.0], [0.0, 4.0]])
    assert fidelity(reference, logits) == Fidelity(50.0, 16 / 25)


def test_all_zero_outputs_have_an_error_of_one() -> None:
    reference = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    assert fidelity(reference, torch.zeros(8, 3)).relative_error == pytest.approx(1.0)


def test_the_error_is_summed_in_float64() -> None:
    reference = torch.full((1000, 100), 1000.0)
    assert fidelity(reference, reference + 1.0).relative_error == pytest.approx(1e-6, rel=1e-9)


def test_a_reference_of_zeros_gives_an_infinite_error_or_zero() -> None:
    zeros = torch.zeros(2, 2)
    assert fidelity(zeros, zeros).relative_error == 0.0
    assert math.isinf(fidelity(zeros, torch.ones(2, 2)).relative_error)


@pytest.mark.parametrize(("first", "second"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((0, 3), (0, 3))])
def test_logits_of_different_shapes_are_rejected(first: tuple[int, int], second: tuple[int, int]) -> None:
    with pytest.raises(CalibrationError, match="give both models the same images"):
        fidelity(torch.zeros(first), torch.zeros(second))


def test_batchwise_errors_equal_those_of_all_outputs(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", classes=0, images=40)
    cache = build_cache(tmp_path / "images", tmp_path / "cache", InputSpec(8, 8))
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(nn.Conv2d(3, 4, 3).eval())  # outputs of more than two dimensions, like a detector's
    full, *candidates = networks
    indices = torch.arange(7)
    reference, *outputs = (predict(network, cache, indices) for network in networks)
    expected = [fidelity(reference, output).relative_error for output in outputs]
    for batch_size in (1, 3, 7, 100):
        assert relative_errors(full, candidates, cache, indices, batch_size) == pytest.approx(expected, rel=1e-5)


def test_errors_of_a_detector_are_those_of_scores_and_of_overlaps() -> None:
    """The oracle decodes everything, pairs each prediction with itself, and uses the overlaps of all pairs."""
    plan, generator = tiny_plan(), torch.Generator().manual_seed(0)
    full = 3 * torch.randn(2, 2 * (8 * 8 + 4 * 4), 8, generator=generator)
    raw = full + torch.randn(full.shape, generator=generator)
    expected = 0.0
    for a, b in zip(full.numpy(), raw.numpy(), strict=True):
        before, after = decode(a, plan, 32, 32), decode(b, plan, 32, 32)
        corners = [np.hstack([d[:, :2] - d[:, 2:4] / 2, d[:, :2] + d[:, 2:4] / 2]) for d in (before, after)]
        scores, others = (d[:, 5:] * d[:, 4:5] for d in (before, after))
        counted = np.maximum(before[:, 4], after[:, 4]) > 0.001
        assert not counted.all()
        errors = ((others - scores) ** 2).sum(1) + scores.max(1) * (1 - pairwise_iou(*corners).diagonal()) ** 2
        expected += float(errors[counted].sum())
    assert detection_error(full, raw, plan, 32) == pytest.approx(expected, rel=1e-5)
    assert detection_error(full, full, plan, 32) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("level", "pixels"), [(0, 0.5), (1, 2.0)])
def test_the_same_share_of_a_box_counts_the_same_at_every_size(level: int, pixels: float) -> None:
    """Boxes of 5 x 6 and 20 x 18 pixels, moved by a tenth of their width."""
    plan = tiny_plan()
    full = torch.full((1, 2 * (8 * 8 + 4 * 4), 8), -20.0)
    index, stride = (0, 4) if level == 0 else (128, 8)
    full[0, index] = torch.tensor([0.0, 0.0, 0.0, 0.0, 20.0, 20.0, -20.0, -20.0])
    moved = full.clone()
    moved[0, index, 0] = torch.logit(torch.tensor(0.5 + pixels / (2 * stride)))
    assert detection_error(full, moved, plan, 32) == pytest.approx((1 - 0.9 / 1.1) ** 2, rel=1e-3)


def test_a_box_that_full_precision_does_not_see_counts_by_its_score() -> None:
    full = torch.full((1, 2 * (8 * 8 + 4 * 4), 8), -20.0)
    other = full.clone()
    other[0, 7, 4:6] = 20.0
    assert detection_error(full, other, tiny_plan(), 32) == pytest.approx(1, rel=1e-6)
