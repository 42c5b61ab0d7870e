"""Starting generations with backoff, without any process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.serving import restarter as module
from service.serving.fork_client import ForkServer
from service.serving.generation import Generation, StartError
from service.serving.limits import Listener, ServingLimits
from service.serving.restarter import Restarter
from service.serving.waiting_room import WaitingRoom
from service.system.liveness import Liveness

GENERATION = Generation("digits", 1, Path("/nowhere"), ForkServer())


class Scene:
    """A restarter whose first starts fail, and what it did."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.reported = 0
        self.delays: list[float] = []
        self.room = WaitingRoom("digits")
        listener = Listener(not_started=self._count)
        self.restarter = Restarter("digits", self._start, self.room, ServingLimits(), listener, Liveness())

    async def _start(self, number: int) -> Generation:
        if self.failures:
            self.failures -= 1
            raise StartError(f"no artifact {number}")
        return GENERATION

    def _count(self) -> None:
        self.reported += 1


def run(scene: Scene, test: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        scene.delays.append(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    asyncio.run(test())


def test_a_start_that_fails_is_repeated_with_growing_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(failures=9)

    async def test() -> None:
        scene.room.hold()
        assert await scene.restarter.start(1) is GENERATION
        assert scene.delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
        assert scene.restarter.problem == "cannot start generation 1: no artifact 1"
        assert scene.restarter.attempted.is_set()
        assert await scene.room.wait(5.0, 1) == 5.0  # requests do not wait for the next attempts
        assert (scene.restarter.failed_starts, scene.reported) == (9, 9)
        scene.restarter.record_up(1)
        assert scene.restarter.problem is None

    run(scene, test, monkeypatch)


def test_requests_wait_for_the_first_restarts_only() -> None:
    scene = Scene()
    waits = []
    for _ in range(4):
        scene.restarter.record_up(1)
        delay_s = scene.restarter.record_crash()
        waits.append((delay_s, not scene.room._open.is_set()))
    assert waits == [(0.5, True), (1.0, True), (2.0, False), (4.0, False)]
    assert (scene.restarter.restarts, scene.restarter.crashes) == (4, 4)


def test_a_generation_that_has_answered_is_restarted_soon_unless_it_crashes_in_a_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    scene = Scene()
    restarter = scene.restarter

    def killed_every(seconds: float, times: int) -> list[float]:
        nonlocal now
        delays = []
        for _ in range(times):
            restarter.record_up(1)
            now += seconds
            delays.append(restarter.record_crash(answered=True))
        return delays

    assert killed_every(4.0, 100) == [0.5] + 99 * [1.0]  # however often
    assert not scene.room._open.is_set()  # requests wait for it
    now += 1000
    quick = killed_every(1.5, 30)  # more than 20 in a minute
    assert quick[:19] == 19 * [1.0]
    assert quick[19:25] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    now += 1000
    assert killed_every(4.0, 2) == [1.0, 1.0]
    restarter.record_up(1)
    assert [restarter.record_crash() for _ in range(3)] == [2.0, 4.0, 8.0]  # it dies before it answers


def test_a_new_generation_starts_with_no_crashes_and_the_shortest_delay() -> None:
    restarter = Scene().restarter
    restarter.record_up(1)
    for _ in range(3):
        restarter.record_crash()
    restarter.record_up(2)
    assert restarter.crashes == 0
    assert restarter.record_crash() == 0.5
    assert (restarter.restarts, restarter.crashes) == (4, 1)


def test_a_generation_that_was_up_for_long_is_restarted_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    restarter = Scene().restarter
    restarter.record_up(1)
    assert [restarter.record_crash() for _ in range(2)] == [0.5, 1.0]
    monkeypatch.setattr(module, "_STABLE_S", -1.0)
    assert restarter.record_crash() == 0.5
