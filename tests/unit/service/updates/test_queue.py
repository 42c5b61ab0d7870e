"""One update of a model at a time, and only the newest of those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edged.errors import StateError
from service.journal.states import State
from service.journal.store import Update
from service.updates.queue import UpdateQueue


def update(identity: int) -> Update:
    return Update(identity, "digits", State.CLAIMED, "a.pt", 1, "0", "0", None, 1, None, None, 0.0, 0.0)


class Script:
    """Notes what the lane does; each drive ends when the test says how."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.outcomes: asyncio.Queue[float | Exception | None] = asyncio.Queue()
        self.lane = UpdateQueue(self.drive, self.supersede, self.fail)

    async def drive(self, update: Update) -> float | None:
        self.log.append(f"drive {update.id}")
        self.started.put_nowait(update.id)
        outcome = await self.outcomes.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def supersede(self, update: Update, newer: Update) -> None:
        self.log.append(f"supersede {update.id} by {newer.id}")

    async def fail(self, update: Update, reason: str) -> None:
        self.log.append(f"fail {update.id}: {reason}")

    async def start(self) -> int:
        return await asyncio.wait_for(self.started.get(), 5)


def run(test: Callable[[Script], Awaitable[None]]) -> list[str]:
    async def main() -> list[str]:
        script = Script()
        await test(script)
        await script.lane.close()
        return script.log

    return asyncio.run(main())


def test_only_the_newest_that_waits_is_driven() -> None:
    async def test(script: Script) -> None:
        script.lane.offer(update(1))
        assert await script.start() == 1
        for identity in (2, 3, 4):
            script.lane.offer(update(identity))
        assert script.lane.waiting == 4
        script.outcomes.put_nowait(None)
        assert await script.start() == 4

    assert run(test) == ["drive 1", "supersede 2 by 4", "supersede 3 by 4", "drive 4"]


def test_what_is_put_off_is_tried_again() -> None:
    async def test(script: Script) -> None:
        script.lane.offer(update(1))
        for delay in (0.001, 0.002, None):
            await script.start()
            script.outcomes.put_nowait(delay)
        script.lane.offer(update(2))
        await script.start()

    assert run(test) == ["drive 1", "drive 1", "drive 1", "drive 2"]


def test_a_newer_one_ends_the_wait() -> None:
    async def test(script: Script) -> None:
        script.lane.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(3600)
        await asyncio.sleep(0)
        script.lane.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "supersede 1 by 2", "drive 2"]


def test_one_that_came_during_the_work_takes_the_place_of_what_is_put_off() -> None:
    async def test(script: Script) -> None:
        script.lane.offer(update(1))
        await script.start()
        script.lane.offer(update(2))
        script.outcomes.put_nowait(3600)
        assert await script.start() == 2

    assert run(test) == ["drive 1", "supersede 1 by 2", "drive 2"]


def test_a_mistake_of_the_program_ends_one_update_not_the_lane() -> None:
    async def test(script: Script) -> None:
        script.lane.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(ZeroDivisionError("oops"))
        script.lane.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "fail 1: unexpected ZeroDivisionError; see the log", "drive 2"]


def test_a_journal_that_cannot_be_written_is_tried_again_later() -> None:
    async def test(script: Script) -> None:
        script.lane.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(StateError("disk full"))
        await asyncio.sleep(0)
        assert script.lane.active is not None
        script.lane.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "supersede 1 by 2", "drive 2"]


def test_a_look_that_is_asked_for_ends_the_wait_whenever_it_is_asked_for() -> None:
    async def test(script: Script) -> None:
        script.lane.offer(update(1))
        await script.start()
        script.lane.recheck()  # in the middle of a try, whose outcome is not known yet
        script.outcomes.put_nowait(3600.0)
        await script.start()
        script.outcomes.put_nowait(3600.0)
        await asyncio.sleep(0)
        script.lane.recheck()
        await script.start()
        script.outcomes.put_nowait(None)

    assert run(test) == ["drive 1"] * 3


def test_a_lane_outlives_an_update_that_can_be_neither_driven_nor_ended() -> None:
    async def test(script: Script) -> None:
        async def fail(update: Update, reason: str) -> None:
            raise RuntimeError(reason)

        script.lane = UpdateQueue(script.drive, script.supersede, fail)
        script.lane.offer(update(1))
        assert await script.start() == 1
        script.outcomes.put_nowait(RuntimeError("broken"))
        script.lane.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "drive 2"]
