"""Whatever damages the journal or takes the state folder away, what is held stays held."""

from __future__ import annotations

import pytest

from benchmarks.faults.journal_damage import DAMAGES
from benchmarks.faults.sections.state import page
from benchmarks.faults.state_trials import LIVE, Bench
from tests.support.tasks import Task

SOME = ("deleted with its log",)  # the others: tests/unit/service/journal/test_merge.py, and the slow test


@pytest.fixture(scope="module")
def bench(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), task)


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in DAMAGES]
)
def test_a_killed_daemon(bench: Bench, damage: str) -> None:
    row = bench.at_rest(damage)
    assert row["faults"] == []
    assert row["told"] or damage not in SOME


@pytest.mark.slow
@pytest.mark.parametrize("damage", LIVE)
def test_a_running_daemon(bench: Bench, damage: str) -> None:
    assert bench.while_running(damage) == {"told": True, "faults": []}


def test_the_page_counts_every_damage_once() -> None:
    rows = [{"damage": name, "told": True, "faults": []} for name in (*DAMAGES, *LIVE)]
    text = page(rows)
    assert text.count(f"| {len(rows)} | nothing |") == 1
    for name in (*DAMAGES, *LIVE):
        assert name in text
    assert "| 1 |" in page([{"damage": "deleted", "told": True, "faults": ["lost: the pin"]}]).splitlines()[-1]
