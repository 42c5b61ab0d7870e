"""Times of several functions, measured in turn."""

from __future__ import annotations

from functools import partial

import pytest

from edged.pipeline.timing import MAX_ROUNDS, MIN_ROUNDS, median_seconds


class Clock:
    """A clock that only what runs moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: list[float]) -> None:
        self.now += seconds[self.calls.count(name) % len(seconds)]
        self.calls.append(name)


def test_the_median_of_calls_that_take_turns() -> None:
    clock = Clock()
    fast, slow = partial(clock.work, "fast", [0.25, 0.25, 8.0]), partial(clock.work, "slow", [0.5])
    assert median_seconds([fast, slow], clock, budget_s=1e9) == [0.25, 0.5]
    assert clock.calls == ["fast", "slow"] * MAX_ROUNDS


@pytest.mark.parametrize(("seconds", "rounds"), [(100.0, MIN_ROUNDS), (0.25, 8), (0.0, MAX_ROUNDS)])
def test_the_time_is_bounded(seconds: float, rounds: int) -> None:
    clock = Clock()
    median_seconds([partial(clock.work, "it", [seconds])], clock, budget_s=2.0)
    assert len(clock.calls) == rounds


def test_nothing_to_time() -> None:
    assert median_seconds([], Clock()) == []


def test_a_rest_after_each_run_counts_for_the_budget_only() -> None:
    clock, rests = Clock(), []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        clock.now += 1.0

    assert median_seconds([partial(clock.work, "it", [0.25])], clock, budget_s=10.0, rest=rest) == [0.25]
    assert rests == [0.25] * 8
