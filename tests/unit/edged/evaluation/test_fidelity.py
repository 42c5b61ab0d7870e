import math
from pathlib import Path

import pytest
import torch
from torch import nn

from edged.calibration.dataset import build_cache
from edged.errors import CalibrationError
from edged.evaluation.classification import predict
from edged.evaluation.fidelity import Fidelity, detection_error, fidelity, relative_errors
from edged.spec import InputSpec
from tests.support.pictures import write_folder


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


def test_errors_of_boxes_count_as_much_as_full_precision_believes_in_them() -> None:
    full = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])[None].logit()
    moved = full.sigmoid()
    moved[0, 0, 0], moved[0, 1, 1] = 0.6, 0.7
    moved[0, 0, 6] = 0.75
    # One score rises from 0.25 to 0.375; the best scores of the two predictions are 0.25.
    assert detection_error(full, moved.logit()) == pytest.approx(0.125**2 + 0.25 * (0.3**2 + 0.2**2), rel=1e-5)
    assert detection_error(full, full) == 0
