from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import UsageError
from edged.execution.grids import ActivationGrid, ActivationScheme

ENDS = st.floats(0, 1e6, width=32).filter(lambda value: value == 0 or value > 1e-6)
SCHEMES = st.sampled_from(ActivationScheme)


@given(ENDS, ENDS, SCHEMES)
def test_every_code_decodes_and_encodes_to_itself(low: float, high: float, scheme: ActivationScheme) -> None:
    grid = ActivationGrid.spanning(-low, high, scheme=scheme)
    codes = torch.arange(grid.least, grid.most + 1, dtype=torch.float32)
    assert len(codes) == 256
    assert torch.equal(grid.encode(grid.decode(codes)), codes)


@given(ENDS, ENDS, SCHEMES, st.lists(st.floats(-1e7, 1e7, width=32), min_size=1))
def test_values_in_range_move_by_half_a_step_at_most(
    low: float, high: float, scheme: ActivationScheme, values: list[float]
) -> None:
    grid = ActivationGrid.spanning(-low, high, scheme=scheme)
    x = torch.tensor(values, dtype=torch.float64)
    least, most = grid.range
    moved = (grid.nearest(x.clone()) - x.clamp(least, most)).abs()
    assert bool((moved <= grid.scale * 0.5001).all())


@given(ENDS, ENDS, SCHEMES)
def test_zero_is_exact_and_the_range_is_spanned(low: float, high: float, scheme: ActivationScheme) -> None:
    grid = ActivationGrid.spanning(-low, high, scheme=scheme)
    assert float(grid.nearest(torch.zeros(1))) == 0
    least, most = grid.range
    assert least <= -low + grid.scale * 0.51
    assert most >= high - grid.scale * 0.51


def test_a_range_without_zero_is_widened_to_it() -> None:
    assert ActivationGrid.spanning(2, 5) == ActivationGrid.spanning(0, 5)
    assert ActivationGrid.spanning(-5, -2) == ActivationGrid.spanning(-5, 0)


def test_positive_values_have_zero_point_zero_so_that_a_relu_can_be_absorbed() -> None:
    grid = ActivationGrid.spanning(0, 5.1)
    assert (grid.zero_point, grid.signed, grid.least, grid.most) == (0, False, 0, 255)
    assert grid.scale == float(torch.tensor(5.1 / 255))


def test_symmetric_grids_are_signed_around_zero() -> None:
    grid = ActivationGrid.spanning(-3, 12.7, scheme=ActivationScheme.SYMMETRIC)
    assert (grid.zero_point, grid.signed, grid.least, grid.most) == (0, True, -128, 127)
    assert grid.scale == float(torch.tensor(12.7 / 127))


@pytest.mark.parametrize("scheme", ActivationScheme)
@pytest.mark.parametrize("most", [0.0, 1e-45])
def test_a_tensor_that_is_always_zero_has_a_grid(scheme: ActivationScheme, most: float) -> None:
    assert ActivationGrid.spanning(0, most, scheme=scheme).scale == 1


def test_rounding_is_half_to_even() -> None:
    grid = ActivationGrid(1.0, 0)
    assert grid.encode(torch.tensor([0.5, 1.5, 2.5])).tolist() == [0, 2, 2]


@pytest.mark.parametrize("scheme", ActivationScheme)
def test_the_grid_of_a_sigmoid_reaches_one(scheme: ActivationScheme) -> None:
    gate = ActivationGrid.spanning(-4, 9, scheme=scheme).of_gate()
    assert gate.zero_point == 0
    assert gate.range[1] == pytest.approx(1)
    assert gate.signed == (scheme is ActivationScheme.SYMMETRIC)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(UsageError, match="must be positive and finite"):
        ActivationGrid(scale, 0)


@pytest.mark.parametrize(("zero_point", "signed"), [(-1, False), (256, False), (128, True), (-129, True)])
def test_impossible_zero_points_are_refused(zero_point: int, signed: bool) -> None:
    with pytest.raises(UsageError, match="zero_point has value"):
        ActivationGrid(1.0, zero_point, signed=signed)


def test_inputs_are_not_modified() -> None:
    x = torch.tensor([0.3, -7.0])
    ActivationGrid.spanning(-1, 1).nearest(x)
    assert x.tolist() == pytest.approx([0.3, -7.0])
