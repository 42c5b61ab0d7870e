import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.daemon.queue_rows import Turn, queue_rows
from service.journal.states import ENDS, State
from service.journal.update import Update


def update(identity, state=State.CLAIMED, model="m", **fields):
    values = {"file_bytes": 1, "sha256": None, "key": None, "generation": None, "attempt": 1, "code": None}
    times = {"dropped_at": 1.0, "updated_at": 2.0}
    return Update(identity, model, state, f"{identity}.pt", **values | {"reason": None} | times | fields)


def shown(updates, turns):
    rows = queue_rows(updates, turns)
    assert [row["position"] for row in rows] == list(range(len(rows)))
    return [(row["update"], row["state"], row["since"], row["waiting_for"]) for row in rows]


def test_what_runs_is_first_and_what_waits_says_for_what():
    updates = [
        update(1, State.DEFERRED, "hot", code="temperature", reason="the device has 90.0 °C"),
        update(2, State.DROPPED, "paused", code="paused", reason="model paused is paused"),
        update(3, model="m"),
        update(4, model="m"),
        update(5, State.LIVE, "old"),
        update(6, State.LOADED, "m"),
        update(7, model="urgent"),
        update(8, State.SETTLED, "new"),
    ]
    turns = {
        1: Turn(retry_at=60.0, condition="the device has 71.0 °C"),
        3: Turn(waiting_since=11.0, place=2),
        4: Turn(waiting_since=12.0, place=1),
        5: Turn(working_since=9.0),
        6: Turn(working_since=10.0, progress={"stage": "quantize", "done": 1, "total": 2}),
        7: Turn(waiting_since=13.0, priority=5),
    }
    assert shown(updates, turns) == [
        (6, "LOADED", 10.0, None),
        (5, "LIVE", 9.0, None),
        (7, "QUEUED", 13.0, "update 6 of m (6.pt)"),
        (4, "QUEUED", 12.0, "update 6 of m (6.pt)"),
        (3, "QUEUED", 11.0, "update 6 of m (6.pt)"),
        (8, "SETTLED", 1.0, None),
        (1, "DEFERRED", 2.0, "the device has 71.0 °C; checked again at 1970-01-01T00:01:00.000Z"),
        (2, "DROPPED", 2.0, "model paused is paused"),
    ]


@pytest.mark.parametrize(
    ("found", "turn", "text"),
    [
        (update(1, State.DEFERRED, code="crash", reason="the worker died"), Turn(), "the worker died"),
        (
            update(1, State.DEFERRED, code="crash", reason="the worker died"),
            Turn(retry_at=0.0),
            "the worker died; tried again at 1970-01-01T00:00:00.000Z",
        ),
        (update(1, State.PUBLISHED, code="pinned", reason="m is pinned"), Turn(working_since=1.0), "m is pinned"),
        (update(1), Turn(waiting_since=1.0), None),
    ],
)
def test_a_held_update_says_why(found, turn, text):
    (row,) = queue_rows([found], {1: turn})
    assert row["waiting_for"] == text


@given(st.lists(st.sampled_from(sorted(set(State) - ENDS)), max_size=6), st.randoms())
def test_every_open_update_has_one_row_in_an_order_of_its_own(states, rng):
    updates = [update(number, state) for number, state in enumerate(states)]
    turns = {number: Turn(working_since=rng.choice([None, 3.0]), place=number) for number in range(len(states))}
    rows = queue_rows(updates, turns)
    assert sorted(row["update"] for row in rows) == list(range(len(states)))
    shuffled = random.Random(1).sample(updates, len(updates))
    assert {row["update"] for row in queue_rows(shuffled, turns)} == {row["update"] for row in rows}
