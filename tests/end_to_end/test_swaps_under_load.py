"""Many swaps under a steady load: nothing fails, each answer is of one generation, and memory comes back."""

from __future__ import annotations

import pytest

from benchmarks.serving.checks import answers_of_two, memory_grew, went_back
from benchmarks.serving.daemon import PREPARES, swappable
from benchmarks.serving.effort import Effort
from benchmarks.serving.endurance import memory, swaps
from benchmarks.serving.load import Load
from benchmarks.serving.processes import eventually


def test_ten_swaps_under_load() -> None:
    with swappable(worker=PREPARES) as edged:
        first = edged.generation
        with Load(edged.address, edged.call, rate=80) as load:
            eventually(lambda: len(load.answers) > 20, "traffic")
            done = [edged.put_live(), *(edged.reload() for _ in range(9))]
            after = len(load.answers)
            eventually(lambda: len(load.answers) >= after + 20, "traffic after the last swap")
    assert [(answer.status, answer.body) for answer in load.answers if answer.failed] == []
    assert {answer.version for answer in load.answers} == {first, *(swap.version for swap in done)}
    assert answers_of_two(load.answers) == []
    assert went_back(load.answers, first, done) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_swaps_and_fifty_thousand_requests(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = swaps(Effort(), worker=PREPARES)
    with capsys.disabled():
        print(f"\n{row}")
    assert (row["swaps"], row["failed"], row["of_two"], row["went_back"]) == (200, 0, [], [])
    assert row["requests"] >= 50_000
    assert not memory_grew(row["memory_few"], row["memory_many"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_comes_back_and_a_leak_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    ours, leaking = memory(Effort())
    with capsys.disabled():
        print(f"\n{ours}\n{leaking}")
    assert not ours["grew"]
    assert leaking["grew"]
