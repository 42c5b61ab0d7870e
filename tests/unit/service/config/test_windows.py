import datetime
import time
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config.windows import DAY_MIN, Window, parse_windows, seconds_until_open


@pytest.fixture(autouse=True)
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")).timestamp()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["22:00-06:00"], [(1320, 360)]),
        (["1:05 - 2:00, 03:00-04:00"], [(65, 120), (180, 240)]),
        (["00:00-24:00"], [(0, 1440)]),
        (["22:00-00:00"], [(1320, 1440)]),
        (["01:00-02:00", "03:00-04:00"], [(60, 120), (180, 240)]),
    ],
)
def test_valid_windows_are_parsed(texts, expected):
    assert parse_windows(texts) == tuple(Window(*window) for window in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write times of day like 22:00-06:00"),
        ("22-06", "write times of day"),
        ("22:00-06:00,", "write times of day"),
        ("24:00-06:00", "contains an invalid time of day"),
        ("01:00-24:01", "contains an invalid time of day"),
        ("01:60-02:00", "contains an invalid time of day"),
        ("05:00-05:00", "is empty; leave the window out"),
        ("00:00-00:00", "is empty"),
    ],
)
def test_invalid_windows_are_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        parse_windows([text])


@given(st.text(alphabet="0123456789:-, ", max_size=24))
def test_any_text_gives_windows_or_an_error(text):
    try:
        windows = parse_windows([text])
    except ValueError:
        return
    for window in windows:
        assert 0 <= window.start < DAY_MIN
        assert 0 < window.end <= DAY_MIN
    assert parse_windows([", ".join(map(str, windows))]) == windows


@given(st.integers(0, DAY_MIN - 1), st.integers(1, DAY_MIN), st.integers(0, DAY_MIN - 1))
def test_a_window_contains_the_minutes_between_its_ends(start, end, minute):
    if start == end % DAY_MIN and end != DAY_MIN:
        return
    window = Window(start, end)
    walked = (end - start) % DAY_MIN or DAY_MIN
    assert window.holds(minute) == ((minute - start) % DAY_MIN < walked)


@given(
    st.lists(
        st.tuples(st.integers(0, DAY_MIN - 1), st.integers(1, DAY_MIN)).filter(lambda w: w[0] != w[1] % DAY_MIN),
        min_size=1,
        max_size=3,
    ),
    st.integers(at_start := 1_767_225_600, at_start + 2 * 365 * 86400),
)
def test_a_window_opens_exactly_at_the_end_of_the_wait(windows, now):
    windows = [Window(*window) for window in windows]
    wait_s = seconds_until_open(windows, now)
    assert 0 <= wait_s <= 48 * 3600
    assert seconds_until_open(windows, now + wait_s) == 0
    if wait_s:
        assert seconds_until_open(windows, now + wait_s - 1) == 1


def test_waits_are_exact_to_the_second():
    night = parse_windows(["22:00-06:00"])
    assert seconds_until_open(night, at("2026-03-01T21:59:30")) == 30
    assert seconds_until_open(night, at("2026-03-01T22:00:00")) == 0
    assert seconds_until_open(night, at("2026-03-02T05:59:59")) == 0
    assert seconds_until_open(night, at("2026-03-02T06:00:00")) == 16 * 3600
    assert seconds_until_open(parse_windows(["01:00-02:00, 12:00-13:00"]), at("2026-12-31T13:00:00")) == 12 * 3600
    assert seconds_until_open((), 0) == 0


def test_the_night_that_daylight_saving_time_begins_is_an_hour_shorter():
    early = parse_windows(["04:00-05:00"])
    assert seconds_until_open(early, at("2026-03-29T00:00:00")) == 3 * 3600
    assert seconds_until_open(early, at("2026-10-25T00:00:00")) == 5 * 3600


def test_a_window_in_the_skipped_hour_opens_on_the_next_day():
    gone = parse_windows(["02:10-02:20"])
    assert seconds_until_open(gone, at("2026-03-29T00:00:00")) == at("2026-03-30T02:10:00") - at("2026-03-29T00:00:00")


def test_a_window_that_overlaps_the_skipped_hour_opens_for_the_rest():
    late = parse_windows(["02:30-03:30"])
    assert seconds_until_open(late, at("2026-03-29T01:59:00")) == 60


def test_a_window_in_the_repeated_hour_opens_twice():
    twice = parse_windows(["02:10-02:20"])
    first = at("2026-10-25T02:10:00")
    assert seconds_until_open(twice, first + 600) == 3000
    assert seconds_until_open(twice, first + 3600) == 0
