"""Deadlines of the heartbeats of loops."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.system.liveness import Liveness, Loop

PATIENCE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def liveness(clock: Clock) -> Liveness:
    return Liveness(PATIENCE_S, clock)


def test_a_loop_is_overdue_after_its_sleep_and_the_patience(liveness: Liveness, clock: Clock) -> None:
    with liveness.loop("watcher") as loop:
        loop.expect_within(30)
        clock.now += 30 + PATIENCE_S
        assert liveness.overdue() == []
        clock.now += 0.01
        assert liveness.overdue() == ["watcher"]
        loop.heartbeat()
        assert liveness.overdue() == []
        clock.now += PATIENCE_S + 0.01
        assert liveness.overdue() == ["watcher"]
        loop.expect_within(None)
        clock.now += 1e9
        assert liveness.overdue() == []


def test_a_loop_without_a_deadline_is_never_overdue(liveness: Liveness, clock: Clock) -> None:
    with liveness.loop("a first look at a share that hangs"):
        clock.now += 1e9
        assert liveness.overdue() == []


def test_a_loop_that_ended_is_not_overdue(liveness: Liveness, clock: Clock) -> None:
    with liveness.loop("done") as loop:
        loop.heartbeat()
    clock.now += 1e9
    assert liveness.overdue() == []


def test_a_loop_that_failed_is_overdue_until_another_replaces_it(liveness: Liveness) -> None:
    def falls_over() -> None:
        with liveness.loop("lane") as loop:
            loop.expect_within(None)
            raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        falls_over()
    assert liveness.overdue() == ["lane"]
    with liveness.loop("lane"):
        assert liveness.overdue() == []


def test_a_cancelled_loop_is_not_overdue(liveness: Liveness) -> None:
    async def forever() -> None:
        with liveness.loop("lane") as loop:
            loop.heartbeat()
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        assert list(liveness.loops) == ["lane"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert liveness.loops == {}


def test_each_piece_of_work_of_one_name_has_its_deadline(liveness: Liveness, clock: Clock) -> None:
    with liveness.bounded("disk"):
        clock.now += PATIENCE_S / 2
        with liveness.bounded("disk"):
            pass
        assert liveness.overdue() == []
        clock.now += PATIENCE_S
        assert liveness.overdue() == ["disk"]
    assert liveness.overdue() == []


def test_a_piece_of_work_that_fails_is_not_overdue(liveness: Liveness, clock: Clock) -> None:
    with pytest.raises(OSError, match="full"), liveness.bounded("disk", 5):
        raise OSError("full")
    clock.now += 1e9
    assert liveness.overdue() == []


def test_without_a_watchdog_nothing_is_overdue(clock: Clock) -> None:
    liveness = Liveness(math.inf, clock)
    with liveness.loop("watcher") as loop:
        loop.heartbeat()
        clock.now += 1e9
        assert liveness.overdue() == []


class Promises(RuleBasedStateMachine):
    """A simple model of Liveness: the deadline of each loop by its name."""

    names = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.liveness = Liveness(PATIENCE_S, self.clock)
        self.loops: dict[str, Loop] = {}
        self.due: dict[str, float] = {}

    @rule(name=names)
    def enter(self, name: str) -> None:
        self.loops[name] = self.liveness.loop(name).__enter__()
        self.due[name] = math.inf

    @rule(name=names, rest=st.one_of(st.none(), st.floats(0, 100)))
    def rest(self, name: str, rest: float | None) -> None:
        if name in self.loops:
            self.loops[name].expect_within(rest)
            self.due[name] = math.inf if rest is None else self.clock.now + rest + PATIENCE_S

    @rule(name=names, error=st.sampled_from([None, ValueError("x"), asyncio.CancelledError()]))
    def leave(self, name: str, error: BaseException | None) -> None:
        if name in self.loops:
            self.loops.pop(name).__exit__(None if error is None else type(error), error, None)
            if isinstance(error, ValueError):
                self.due[name] = -math.inf
            else:
                del self.due[name]

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def overdue_is_what_is_due(self) -> None:
        assert self.liveness.overdue() == sorted(name for name, due in self.due.items() if due < self.clock.now)


TestPromises = Promises.TestCase
