from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import CalibrationError
from edged.execution.histogram import BINS, Histogram

# A value that is less than the largest one by more than float32 has exponents for is zero next to it.
MAGNITUDES = st.floats(2.0**-40, 2.0**60, width=32)
VALUES = st.lists(st.one_of(st.just(0.0), MAGNITUDES, MAGNITUDES.map(lambda x: -x)), min_size=1, max_size=60)


def counted(*batches: list[float]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(torch.tensor(batch, dtype=torch.float32))
    return histogram


@given(VALUES, st.data())
def test_counts_are_the_same_however_values_are_divided(values: list[float], data: st.DataObject) -> None:
    whole = counted(values)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(values)), max_size=5)))
    batches = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True) if a < b]
    divided = counted(*batches)
    assert (divided.low, divided.high, divided.count) == (whole.low, whole.high, whole.count)
    for found, wanted in zip(divided.bins(), whole.bins(), strict=True):
        assert torch.equal(found, wanted)


@given(VALUES)
def test_the_range_is_exact_and_every_value_is_counted(values: list[float]) -> None:
    histogram = counted(values)
    assert (histogram.low, histogram.high) == (min(*values, 0.0), max(*values, 0.0))
    middles, counts = histogram.bins()
    assert counts.sum() == histogram.count == len(values)
    assert bool((middles.diff() > 0).all())
    assert histogram.low <= float(middles[0])
    assert float(middles[-1]) <= histogram.high


@given(VALUES)
def test_a_value_is_in_a_bin_no_wider_than_a_thousandth_of_the_largest(values: list[float]) -> None:
    middles, counts = counted(values).bins()
    x = torch.tensor(values, dtype=torch.float64).sort().values
    spread = middles.repeat_interleave(counts.long())
    width = max(float(x.abs().max()) / (BINS / 4), 2.0**-100)
    assert bool(((x - spread).abs() <= width).all())


def test_only_zeros() -> None:
    histogram = counted([0.0, 0.0], [0.0])
    middles, counts = histogram.bins()
    assert (middles.tolist(), counts.tolist(), histogram.low, histogram.high) == ([0.0], [3.0], 0.0, 0.0)


def test_zeros_before_the_first_value_are_kept() -> None:
    _, counts = counted([0.0] * 5, [3.0]).bins()
    assert counts.tolist() == [5.0, 1.0]


def test_extending_counts_nothing() -> None:
    histogram = counted([1.0])
    histogram.extend(torch.tensor([-9.0, 4.0]))
    assert (histogram.low, histogram.high, histogram.count) == (-9.0, 4.0, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [Histogram.update, Histogram.extend])
def test_values_that_are_not_finite_are_refused(bad: float, method) -> None:
    histogram = counted([1.0, 2.0])
    with pytest.raises(CalibrationError, match="an activation is not finite because values overflow"):
        method(histogram, torch.tensor([0.5, bad]))
    assert (histogram.low, histogram.high, histogram.count) == (0.0, 2.0, 2)


def test_memory_does_not_grow_with_values() -> None:
    histogram = Histogram()
    for scale in (1e-6, 1.0, 1e6):
        histogram.update(torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * scale)
    assert len(histogram.bins()[0]) <= BINS
    assert histogram.count == 30_000


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_counts_do_not_depend_on_the_layout_of_maps(seed: int, step: int) -> None:
    maps = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 10
    one, other = Histogram(), Histogram()
    one.update(maps[:, :, ::step, ::step])
    other.update(maps.to(memory_format=torch.channels_last)[:, :, ::step, ::step])
    assert (one.low, one.high, one.count) == (other.low, other.high, other.count)
    for found, wanted in zip(one.bins(), other.bins(), strict=True):
        assert torch.equal(found, wanted)
