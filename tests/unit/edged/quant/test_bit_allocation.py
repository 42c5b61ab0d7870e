from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import UsageError
from edged.quant import bit_allocation
from edged.quant.bit_allocation import Option, allocate

OPTIONS = st.lists(
    # Whole costs are often equal, so that ties occur.
    st.tuples(st.integers(0, 30), st.integers(0, 20).map(float) | st.floats(0, 10)),
    min_size=1,
    max_size=5,
).map(lambda pairs: [Option(bits, size, cost) for bits, (size, cost) in enumerate(pairs, 2)])
LAYERS = st.lists(OPTIONS, min_size=1, max_size=5)


def sums(chosen: Sequence[Option]) -> tuple[float, int]:
    return sum(option.cost for option in chosen), sum(option.bytes for option in chosen)


@given(layers=LAYERS, spare=st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_no_other_choice_within_the_limit_costs_less(layers: list[list[Option]], spare: int) -> None:
    limit = sum(min(option.bytes for option in options) for options in layers) + spare
    found = allocate(layers, limit)
    assert all(option in options for option, options in zip(found.chosen, layers, strict=True))
    assert (found.cost, found.bytes) == sums(found.chosen)
    assert found.bytes <= limit
    least = min(sums(chosen)[0] for chosen in itertools.product(*layers) if sums(chosen)[1] <= limit)
    assert found.cost == pytest.approx(least, abs=1e-9)
    assert found.bound == found.cost


@given(layers=LAYERS, spare=st.integers(0, 60), more=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_more_bytes_never_cost_more(layers: list[list[Option]], spare: int, more: int) -> None:
    limit = sum(min(option.bytes for option in options) for options in layers) + spare
    assert allocate(layers, limit + more).cost <= allocate(layers, limit).cost + 1e-9


def test_of_equal_costs_the_fewest_bytes_are_taken() -> None:
    found = allocate([[Option(2, 5, 1.0), Option(3, 7, 1.0)], [Option(2, 3, 0.0), Option(3, 9, 0.0)]], 100)
    assert [option.bits for option in found.chosen] == [2, 2]


def test_a_limit_below_the_smallest_choice_is_refused_with_its_size() -> None:
    with pytest.raises(UsageError, match="12 bytes are too few: the smallest choice takes 13"):
        allocate([[Option(2, 5, 1.0)], [Option(2, 8, 0.0), Option(3, 9, 0.0)]], 12)


def network_of(layers: int) -> list[list[Option]]:
    numbers = random.Random(0)
    sizes = [numbers.choice((432, 2304, 9216, 36864)) * numbers.randint(1, 9) for _ in range(layers)]
    return [
        [Option(bits, size * bits // 8, numbers.uniform(1, 2) * size**0.5 * 4.0**-bits) for bits in range(2, 9)]
        for size in sizes
    ]


def test_a_cut_search_states_a_bound_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = network_of(12)
    limit = sum(options[-1].bytes for options in layers) // 2
    exact = allocate(layers, limit)
    assert exact.bound == exact.cost
    monkeypatch.setattr(bit_allocation, "MAX_CHOICES", 2)
    found = allocate(layers, limit)
    assert found.bytes <= limit
    assert found.bound <= exact.cost <= found.cost
    assert found.bound >= 0.9 * exact.cost


@pytest.mark.parametrize("depth", [60, 156])  # of a YOLOv5 and of a ResNet-152
@pytest.mark.parametrize("mean", [2.5, 4, 7])
def test_deep_networks_are_solved_exactly(depth: int, mean: float) -> None:
    layers = network_of(depth)
    limit = int(sum(options[0].bytes for options in layers) * mean / 2)
    found = allocate(layers, limit)
    assert found.bound == found.cost  # nothing was cut
    assert 0.999 * limit < found.bytes <= limit
    uniform = [options[int(mean) - 2] for options in layers]
    assert found.cost < 0.95 * sums(uniform)[0]
