"""Jumps of the wall clock, with both clocks set by the test."""

from __future__ import annotations

import time

from service.system.age_clock import AgeClock

DAY = 86400.0


class Clocks:
    def __init__(self, last: float | None = None) -> None:
        self.wall, self.steady = 1e9, 50.0
        self.clock = AgeClock(last, lambda: self.wall, lambda: self.steady)

    def pass_(self, seconds: float) -> float:
        self.wall += seconds
        self.steady += seconds
        return self.clock.now()


def test_it_follows_the_wall_clock() -> None:
    assert abs(AgeClock().now() - time.time()) < 3600
    clocks = Clocks()
    assert clocks.pass_(10.0) == clocks.wall
    clocks.wall += 60  # set by a time server
    assert clocks.pass_(40 * DAY) == clocks.wall


def test_a_jump_forward_is_believed_after_a_day() -> None:
    clocks = Clocks()
    before = clocks.pass_(1.0)
    clocks.wall += 3650 * DAY
    assert clocks.pass_(10.0) == before + 10
    assert clocks.pass_(DAY - 1) == before + DAY + 9
    assert clocks.pass_(1.0) == clocks.wall
    assert clocks.pass_(DAY) == clocks.wall


def test_a_jump_that_is_taken_back_changes_nothing() -> None:
    clocks = Clocks()
    for _ in range(3):  # the day is counted anew each time
        clocks.wall += 3650 * DAY
        assert clocks.pass_(0.9 * DAY) == clocks.wall - 3650 * DAY
        clocks.wall -= 3650 * DAY
        assert clocks.pass_(1.0) == clocks.wall


def test_a_clock_that_is_set_back_is_followed() -> None:
    clocks = Clocks()
    clocks.wall -= 3650 * DAY
    assert clocks.pass_(1.0) == clocks.wall
    clocks.wall += 3650 * DAY  # and set right again
    assert clocks.pass_(1.0) == clocks.wall - 3650 * DAY
    assert clocks.pass_(DAY) == clocks.wall


def test_a_start_long_after_the_last_known_time_is_a_jump() -> None:
    clocks = Clocks(last=1e9 - 400 * DAY)
    assert clocks.pass_(10.0) == 1e9 - 400 * DAY + 10
    assert clocks.pass_(DAY) == clocks.wall
    assert Clocks(last=1e9 - 60).clock.now() == 1e9
