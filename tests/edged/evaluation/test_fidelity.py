import math

import pytest
import torch

from edged.errors import CalibrationError
from edged.evaluation.fidelity import Fidelity, fidelity


def test_a_model_agrees_with_itself() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert fidelity(logits, logits) == Fidelity(100.0, 0.0)


def test_figures_worked_out_by_hand() -> None:
    reference = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    logits = torch.tensor([[3.0, 4.0], [0.0, 4.0]])
    assert fidelity(reference, logits) == Fidelity(50.0, 16 / 25)


def test_no_output_is_an_error_of_one() -> None:
    reference = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    assert fidelity(reference, torch.zeros(8, 3)).relative_error == pytest.approx(1.0)


def test_the_error_is_summed_in_double() -> None:
    reference = torch.full((1000, 100), 1000.0)
    assert fidelity(reference, reference + 1.0).relative_error == pytest.approx(1e-6, rel=1e-9)


def test_a_reference_of_zeros() -> None:
    zeros = torch.zeros(2, 2)
    assert fidelity(zeros, zeros).relative_error == 0.0
    assert math.isinf(fidelity(zeros, torch.ones(2, 2)).relative_error)


@pytest.mark.parametrize(("first", "second"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((0, 3), (0, 3))])
def test_logits_of_different_images_are_refused(first: tuple[int, int], second: tuple[int, int]) -> None:
    with pytest.raises(CalibrationError, match="give both models the same images"):
        fidelity(torch.zeros(first), torch.zeros(second))
