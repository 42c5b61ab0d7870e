"""The checks that swaps and memory are held to must be able to fail."""

from __future__ import annotations

import json

from benchmarks.serving.checks import Swap, answers_of_two, memory_grew, went_back
from benchmarks.serving.load import Answer

SWAPS = [Swap(10, 11, "2"), Swap(20, 21, "1"), Swap(30, 31, "2")]  # there and back again


def answer(version: str, sent: float, done: float | None = None, output: bytes = b"", connection: int = 0) -> Answer:
    text = json.dumps({"model_version": version}).encode()
    behind = output or version.encode()
    return Answer(connection, sent, sent, sent + 0.1 if done is None else done, 200, text + behind, len(text))


def test_responses_of_the_live_generation_are_right():
    times = (("1", 5), ("1", 10.2), ("2", 10.5), ("2", 15), ("2", 20.5), ("1", 21.5), ("1", 30.5), ("2", 35))
    answers = [answer(version, sent) for version, sent in times]
    assert went_back(answers, "1", SWAPS) == []
    assert answers_of_two(answers) == []


def test_a_response_of_a_retired_generation_is_found():
    (problem,) = went_back([answer("1", 5), answer("1", 12)], "1", SWAPS)
    assert "a response of 1, which was not live" in problem


def test_a_response_of_a_generation_before_its_swap_is_found():
    assert len(went_back([answer("2", 5)], "1", SWAPS)) == 1


def test_a_return_to_the_old_generation_within_a_swap_is_found_over_any_connection():
    seen = answer("2", 10.2, 10.3, connection=0)
    late = answer("1", 10.4, 10.5, connection=1)
    (problem,) = went_back([late, seen], "1", SWAPS)
    assert "a response of 1 after 1 swaps" in problem
    overlapping = answer("1", 10.25, 10.5, connection=1)  # sent before a newer generation had responded
    assert went_back([overlapping, seen], "1", SWAPS) == []


def test_the_same_generation_again_counts_as_a_new_one():
    """1 is in service until the first swap and after the second: only in between it must not answer."""
    assert went_back([answer("1", 25)], "1", SWAPS) == []
    assert len(went_back([answer("2", 25)], "1", SWAPS)) == 1


def test_outputs_of_another_generation_are_found():
    assert answers_of_two([answer("1", 1, output=b"a"), answer("1", 2, output=b"b")]) == ["1 gave 2 different outputs"]
    assert answers_of_two([answer("1", 1, output=b"a"), answer("2", 2, output=b"a")]) == [
        "1 and 2 gave the same outputs"
    ]


def test_failed_requests_are_ignored():
    failed = Answer(0, 1, 1, 2, 503, b'{"error": "no"}')
    assert (went_back([failed], "1", SWAPS), answers_of_two([failed])) == ([], [])


def test_memory_may_grow_within_the_tolerance():
    assert not memory_grew(1000 << 20, 1050 << 20)  # five percent
    assert not memory_grew(1000 << 20, 900 << 20)
    assert memory_grew(1000 << 20, 1051 << 20)
