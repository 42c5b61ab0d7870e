"""Times of one image in several engines, measured in turn so that other work on the device slows each of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

MIN_ROUNDS, MAX_ROUNDS = 5, 40
BUDGET_S = 1.0  # after which no round begins, once there were MIN_ROUNDS


Clock = Callable[[], float]  # returns a time in seconds, as time.perf_counter does
Rest = Callable[[float], None]  # called after each run with its time in seconds
# Returns a context in which times are measured: whoever shares the cores with others frees them for that.
Measuring = Callable[[], AbstractContextManager[Rest]]


def no_rest(_: float) -> None:
    """Go on at once."""


def undisturbed() -> AbstractContextManager[Rest]:
    """Return the context of a caller that shares its cores with nobody."""
    return nullcontext(no_rest)


def median_seconds(
    runs: Sequence[Callable[[], object]], clock: Clock, budget_s: float = BUDGET_S, rest: Rest = no_rest
) -> list[float]:
    """Return the median time of each of some functions in seconds.

    Args:
        runs: The functions. Each of them was called before, so that no call is its first.
        clock: Returns a time in seconds.
        budget_s: Time in seconds after which no round begins, once there were MIN_ROUNDS. Rests count.
        rest: Called after each run with its time in seconds.
    """
    times: list[list[float]] = [[] for _ in runs]
    start = clock()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and clock() - start >= budget_s:
            break
        for run, taken in zip(runs, times, strict=True):
            before = clock()
            run()
            taken.append(clock() - before)
            rest(taken[-1])
    return [statistics.median(taken) for taken in times]
