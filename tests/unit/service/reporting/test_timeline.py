import pytest

from service.journal.states import WAY, State
from service.journal.update import Event, Update
from service.reporting.timeline import spans

STAGES = {"settle": 2.0, "claim": 1.0, "start": 1.5, "verify": 0.5, "load": 0.5, "calibrate": 3.0, "quantize": 20.0,
          "evaluate": 4.0, "write": 0.5, "publish": 0.1, "warm": 2.0, "swap": 0.3, "probation": 10.0}  # fmt: skip
ENTERED = {"DROPPED": 0, "SETTLED": 2, "CLAIMED": 3, "VERIFIED": 10, "LOADED": 10.5, "CALIBRATED": 13.5,
           "QUANTIZED": 33.5, "EVALUATED": 37.5, "PUBLISHED": 38.1, "WARMED": 40.1, "LIVE": 40.2,
           "COMMITTED": 50.2}  # fmt: skip


def update_of(stages):
    return Update(1, "m", State.COMMITTED, "a.pt", 1, None, None, None, 1, None, None, 1000.0, 1050.0, stages)


def events_of(entered):
    return [Event(1000.0 + at, State(name), {}) for name, at in entered.items()]


def test_every_stage_of_an_update_is_placed():
    found = spans(update_of(STAGES), events_of(ENTERED))
    assert {span.stage: span.start_s for span in found} == pytest.approx(
        {"settle": 0, "claim": 2, "start": 8, "verify": 9.5, "load": 10, "calibrate": 10.5, "quantize": 13.5,
         "evaluate": 33.5, "write": 37.5, "publish": 38, "warm": 38.1, "swap": 40.2, "probation": 40.2}
    )  # fmt: skip
    assert [span.stage for span in found] == [*STAGES]  # in the order in which they happened
    assert {span.stage: span.seconds for span in found} == STAGES
    assert set(ENTERED) == {state.value for state in WAY}


def test_the_last_attempt_counts():
    again = [*events_of(ENTERED), Event(1100.0, State.CLAIMED, {}), Event(1130.0, State.VERIFIED, {})]
    found = {span.stage: span.start_s for span in spans(update_of(STAGES), again)}
    assert found["verify"] == pytest.approx(129.5)
    assert found["start"] == pytest.approx(128)


def test_stages_without_times_are_left_out():
    found = spans(update_of({"settle": 2.0, "unheard of": 1.0, "verify": 1.0}), events_of({"DROPPED": 0, "SETTLED": 2}))
    assert [span.stage for span in found] == ["settle"]
    assert spans(update_of({}), []) == []


def test_a_clock_that_was_set_back_gives_no_negative_times():
    found = spans(update_of(STAGES), events_of({name: at - 60 for name, at in ENTERED.items()}))
    assert min(span.start_s for span in found) == 0
