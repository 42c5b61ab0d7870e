from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from edged.comparators.method import Options, grid_of
from edged.comparators.rounding import SoftRounding, cosine, learning_rate, linear


def make() -> tuple[torch.Tensor, SoftRounding]:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return weight, SoftRounding(weight, grid_of(weight, Options(bits=4)))


def test_it_starts_from_the_weights_of_full_precision():
    weight, rounding = make()
    grid = grid_of(weight, Options(bits=4))
    on_grid = weight.flatten(1).maximum(grid.decode(torch.zeros(4, 1))).minimum(grid.decode(torch.full((4, 1), 15.0)))
    assert_close(rounding.weight().flatten(1), on_grid, rtol=1e-4, atol=1e-5)


def test_shares_decide_whether_a_weight_is_rounded_up():
    weight, rounding = make()
    grid = grid_of(weight, Options(bits=4))
    with torch.no_grad():
        rounding.variable.fill_(5.0)
    steps = weight.flatten(1) / grid.scale[:, None] + grid.zero_point[:, None]
    assert_close(rounding.quantized().codes.float(), (steps.floor() + 1).clamp(0, 15))
    with torch.no_grad():
        rounding.variable.fill_(-5.0)
    assert_close(rounding.quantized().codes.float(), steps.floor().clamp(0, 15))
    assert_close(rounding.weight(), rounding.quantized().decode())  # both ends of h are reached exactly


def test_the_regularizer_is_zero_at_both_ends_and_largest_between():
    _, rounding = make()
    assert rounding.regularizer(2.0).item() > 1
    with torch.no_grad():
        rounding.variable.fill_(5.0)
    assert rounding.regularizer(20.0).item() == 0
    with torch.no_grad():
        rounding.variable.fill_(0.0)
    assert rounding.regularizer(2.0).item() == pytest.approx(rounding.variable.numel())


@pytest.mark.parametrize("schedule", [cosine, linear])
def test_beta_falls_from_20_to_2(schedule):
    values = [schedule(i / 10) for i in range(11)]
    assert values[0] == pytest.approx(20)
    assert values[-1] == pytest.approx(2)
    assert values == sorted(values, reverse=True)


def test_fewer_iterations_take_larger_steps_within_bounds():
    assert learning_rate(10_000, 10_000) == 1e-3
    assert learning_rate(20_000, 10_000) == 1e-3
    assert learning_rate(2_000, 10_000) == pytest.approx(5e-3)
    assert learning_rate(1, 10_000) == 3e-2
