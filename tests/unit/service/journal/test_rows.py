"""Rows of the journal, as they are and as damage makes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli import render
from service.journal.rows import COLUMNS, event_of, hold_of, last_times_of, update_of
from service.journal.states import ENDS, NEXT, IllegalTransition, State, advance, is_end
from service.journal.update import Event, Hold, Update, UpdateReport, UpdateSignature

STORED = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(), st.binary())
SIGNATURE = UpdateSignature(3, "a.pub", "ab", "{}")
NAMES = COLUMNS.split(", ")


def row(**changed: object) -> list[object]:
    values: dict[str, object] = {
        "id": 7,
        "model": "m",
        "state": "LIVE",
        "file_name": "a.pt",
        "file_bytes": 5,
        "sha256": "ab",
        "key": "ab:1",
        "generation": 2,
        "attempt": 1,
        "code": None,
        "reason": None,
        "dropped_at": 1.0,
        "updated_at": 2.0,
        "stages": '{"load": 0.5}',
        "report": '{"bits": 4, "swap": {"policy": "auto"}}',
        "signature": '{"version": 3, "key": "a.pub", "key_id": "ab", "envelope": "{}"}',
    }
    return [(values | changed)[name] for name in NAMES]


def test_a_row_is_an_update() -> None:
    report = UpdateReport({"bits": 4}, swap={"policy": "auto"})
    expected = Update(
        7, "m", State.LIVE, "a.pt", 5, "ab", "ab:1", 2, 1, None, None, 1.0, 2.0, {"load": 0.5}, report, SIGNATURE
    )
    assert update_of(row()) == expected
    assert event_of((1.5, "LIVE", '{"code": "x"}')) == Event(1.5, State.LIVE, {"code": "x"})


@given(st.tuples(STORED, STORED, STORED))
def test_every_hold_can_be_read(values: tuple[object, object, object]) -> None:
    hold = hold_of(values)
    assert hold.pinned == (values[0] != 0)
    assert hold_of((0, 1, None)) == Hold(paused=True)


@given(st.lists(STORED, min_size=len(NAMES), max_size=len(NAMES)))
def test_every_row_can_be_read_and_shown(values: list[object]) -> None:
    update = update_of(values)
    plain = update.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["state"] == update.state.value
    assert render.history({"model": "m", "updates": [plain], "unpublished": [plain]})
    assert is_end(update.state) == (values[NAMES.index("state")] in {state.value for state in ENDS})


@given(st.tuples(STORED, STORED, STORED))
def test_all_last_times_can_be_exported(values: tuple[object, object, object]) -> None:
    model, (dropped_at, live_at) = last_times_of(values)
    assert isinstance(model, str)
    assert dropped_at >= 0
    assert (live_at is None) == (values[2] is None)
    assert last_times_of(("m", 5, 7.5)) == ("m", (5.0, 7.5))


@given(st.tuples(STORED, STORED, STORED))
def test_every_event_can_be_read(values: tuple[object, object, object]) -> None:
    json.dumps(event_of(values).to_dict(), allow_nan=False)


def test_half_a_surrogate_pair_can_be_sent() -> None:
    detail = event_of((1.5, "LIVE", r'{"reason": "\ud800"}')).detail
    assert json.dumps(detail, ensure_ascii=False).encode() == '{"reason": "\N{REPLACEMENT CHARACTER}"}'.encode()


@given(st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=3)))
def test_every_report_can_be_read(report: object) -> None:
    json.dumps(update_of(row(report=json.dumps(report))).to_dict(), allow_nan=False)


@pytest.mark.parametrize("sha256", ["..", "../../etc", "AB", "", "g" * 64, "a" * 65, 5, b"ab"])
def test_no_digest_leads_out_of_the_state_folder(sha256: object) -> None:
    assert update_of(row(sha256=sha256)).sha256 is None


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "1" * 5000, "NaN", '{"swap": 3, "shadow": [1], "rollback": null}']
)
def test_a_report_that_cannot_be_read_is_empty(text: str) -> None:
    assert update_of(row(report=text)).report == UpdateReport()


def test_a_word_that_is_no_state_stays_as_it_is() -> None:
    unknown = update_of(row(state="GARBAGE")).state
    assert (unknown, unknown.value, f"{unknown.value}") == ("GARBAGE", "GARBAGE", "GARBAGE")
    assert unknown not in NEXT
    assert unknown not in State.__members__.values()
    assert not is_end(unknown)
    assert unknown == State.read("GARBAGE")
    assert unknown is not State.LIVE
    assert State.read("LIVE") is State.LIVE
    assert len(State) == len(State.__members__)
    with pytest.raises(IllegalTransition, match="GARBAGE -> LIVE"):
        advance(unknown, State.LIVE)
