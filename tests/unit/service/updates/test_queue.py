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
    """Logs what the queue does; each drive ends with an outcome of the test."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.outcomes: asyncio.Queue[float | Exception | None] = asyncio.Queue()
        self.queue = UpdateQueue(self.drive, self.supersede, self.fail)

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
        await script.queue.close()
        return script.log

    return asyncio.run(main())


def test_only_the_newest_that_waits_is_driven() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        assert await script.start() == 1
        for identity in (2, 3, 4):
            script.queue.offer(update(identity))
        assert script.queue.waiting == 4
        script.outcomes.put_nowait(None)
        assert await script.start() == 4

    assert run(test) == ["drive 1", "supersede 2 by 4", "supersede 3 by 4", "drive 4"]


def test_a_deferred_update_is_tried_again() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        for delay in (0.001, 0.002, None):
            await script.start()
            script.outcomes.put_nowait(delay)
        script.queue.offer(update(2))
        await script.start()

    assert run(test) == ["drive 1", "drive 1", "drive 1", "drive 2"]


def test_a_newer_update_ends_the_wait() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(3600)
        await asyncio.sleep(0)
        script.queue.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "supersede 1 by 2", "drive 2"]


def test_an_update_that_arrived_during_the_work_supersedes_the_deferred_one() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.queue.offer(update(2))
        script.outcomes.put_nowait(3600)
        assert await script.start() == 2

    assert run(test) == ["drive 1", "supersede 1 by 2", "drive 2"]


def test_a_bug_ends_one_update_and_not_the_queue() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(ZeroDivisionError("oops"))
        script.queue.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "fail 1: unexpected ZeroDivisionError; see the log", "drive 2"]


def test_a_journal_that_cannot_be_written_is_tried_again_later() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(StateError("disk full"))
        await asyncio.sleep(0)
        assert script.queue.active is not None
        script.queue.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "supersede 1 by 2", "drive 2"]


def test_a_recheck_ends_the_wait_whenever_it_is_requested() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.queue.recheck()  # in the middle of an attempt, whose outcome is not known yet
        script.outcomes.put_nowait(3600.0)
        await script.start()
        script.outcomes.put_nowait(3600.0)
        await asyncio.sleep(0)
        script.queue.recheck()
        await script.start()
        script.outcomes.put_nowait(None)

    assert run(test) == ["drive 1"] * 3


def test_the_queue_survives_an_update_that_can_be_neither_driven_nor_ended() -> None:
    async def test(script: Script) -> None:
        async def fail(update: Update, reason: str) -> None:
            raise RuntimeError(reason)

        script.queue = UpdateQueue(script.drive, script.supersede, fail)
        script.queue.offer(update(1))
        assert await script.start() == 1
        script.outcomes.put_nowait(RuntimeError("broken"))
        script.queue.offer(update(2))
        assert await script.start() == 2

    assert run(test) == ["drive 1", "drive 2"]
