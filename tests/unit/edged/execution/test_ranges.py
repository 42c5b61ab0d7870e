from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from edged.execution.grids import ActivationGrid
from edged.execution.histogram import Histogram
from edged.execution.ranges import GRID_POINTS, TOLERANCE, RangePolicy, choose_range, golden_section


def histogram_of(values: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def error_of(values: Tensor, low: float, high: float) -> float:
    return float((values - ActivationGrid.spanning(low, high).nearest(values)).square().sum())


@given(st.floats(-5, 5), st.floats(0.1, 3), st.floats(0, 1), st.integers(1, 4))
def test_the_minimum_of_a_function_with_one_is_found(least: float, width: float, place: float, exponent: int) -> None:
    minimum = least + place * width
    found = golden_section(lambda x: abs(x - minimum) ** exponent, least, least + width)
    assert abs(found - minimum) <= 2 * TOLERANCE * width


@given(st.integers(0, 2**32 - 1))
def test_no_point_of_the_bracket_search_is_better(seed: int) -> None:
    """A function of a few waves has several minima."""
    generator = torch.Generator().manual_seed(seed)
    heights, phases = torch.rand(6, generator=generator).tolist(), torch.rand(6, generator=generator).tolist()
    waves = list(enumerate(zip(heights, phases, strict=True)))

    def error(x: float) -> float:
        return sum(height * math.sin((index + 1) * 9 * x + 7 * phase) for index, (height, phase) in waves)

    found = error(golden_section(error, 0.0, 1.0))
    assert found <= min(error(index / (GRID_POINTS - 1)) for index in range(GRID_POINTS))


def test_minmax_is_the_whole_range() -> None:
    values = normal(1000)
    ends = choose_range(histogram_of(values), RangePolicy.MINMAX)
    assert ends == (float(values.min()), float(values.max()))


def test_percentile_leaves_out_one_value_in_ten_thousand() -> None:
    values = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([50.0, -70.0])])
    low, high = choose_range(histogram_of(values), RangePolicy.PERCENTILE)
    assert -1 - 0.1 < low < -0.9
    assert 0.9 < high < 1 + 0.1


def test_mse_clips_an_outlier_and_is_no_worse_than_minmax() -> None:
    values = torch.cat([normal(100_000), torch.tensor([60.0])])
    low, high = choose_range(histogram_of(values), RangePolicy.MSE)
    assert high < 55
    assert error_of(values, low, high) < error_of(values, float(values.min()), 60.0)


def test_silu_spends_no_codes_on_dead_negatives() -> None:
    """Values far below zero are zero after a SiLU; the low ends that are good for detectors lie near -6."""
    values = torch.cat([normal(50_000) * 3, normal(50_000, 1) * 30 - 60])
    histogram = histogram_of(values)
    low, high = choose_range(histogram, RangePolicy.SILU)
    assert -12 < low < -3

    def error(ends: tuple[float, float]) -> float:
        rounded = ActivationGrid.spanning(*ends).nearest(values)
        return float((functional.silu(values) - functional.silu(rounded)).square().sum())

    assert error((low, high)) < 0.5 * error((histogram.low, histogram.high))


@pytest.mark.parametrize("policy", RangePolicy)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_ranges_include_zero_and_stay_within_the_values(policy: RangePolicy, values: list[float]) -> None:
    histogram = histogram_of(torch.tensor(values, dtype=torch.float32))
    low, high = choose_range(histogram, policy)
    assert histogram.low <= low <= 0 <= high <= histogram.high
    ActivationGrid.spanning(low, high)


@pytest.mark.parametrize("policy", RangePolicy)
def test_only_zeros(policy: RangePolicy) -> None:
    assert choose_range(histogram_of(torch.zeros(9)), policy) == (0.0, 0.0)


MIXTURES = st.lists(
    st.tuples(st.floats(-50, 50), st.floats(0.01, 20), st.integers(1, 200)), min_size=1, max_size=4
)  # mean, deviation and number of values


@settings(max_examples=40)
@given(MIXTURES, st.integers(0, 2**32 - 1))
def test_a_search_is_never_worse_than_the_whole_range(mixture: list[tuple[float, float, int]], seed: int) -> None:
    """Values around several means have errors with several minima; the search may end at a worse one."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(count, generator=generator) * width + mean for mean, width, count in mixture]
    histogram = histogram_of(torch.cat(parts))
    middles, counts = histogram.bins()

    def after(function: Callable[[Tensor], Tensor], ends: tuple[float, float]) -> float:
        rounded = ActivationGrid.spanning(*ends).nearest(middles.clone())
        return float((counts * (function(middles) - function(rounded)).square()).sum())

    whole = histogram.low, histogram.high
    assert after(lambda x: x, choose_range(histogram, RangePolicy.MSE)) <= after(lambda x: x, whole)
    assert after(functional.silu, choose_range(histogram, RangePolicy.SILU)) <= after(functional.silu, whole)
