"""One update of a model at a time, the newest first; older ones wait until a newer one is found fit."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from edged.errors import StateError
from service.journal.states import State
from service.journal.store import Update
from service.updates.queue import UpdateQueue


def update(identity: int, state: State = State.CLAIMED) -> Update:
    return Update(identity, "digits", state, "a.pt", 1, "0", "0", None, 1, None, None, 0.0, 0.0)


class Script:
    """Logs what the queue does; each drive ends with an outcome of the test."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.outcomes: asyncio.Queue[float | Exception | None] = asyncio.Queue()
        self.live: set[int] = set()
        self.queue = UpdateQueue(self)

    async def drive(self, update: Update) -> float | None:
        self.log.append(f"drive {update.id}")
        self.started.put_nowait(update.id)
        outcome = await self.outcomes.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def supersede(self, update: Update, newer: Update) -> None:
        self.log.append(f"supersede {update.id} by {newer.id}")

    async def cancel(self, update: Update) -> None:
        self.log.append(f"cancel {update.id}")

    async def fail(self, update: Update, reason: str) -> None:
        self.log.append(f"fail {update.id}: {reason}")

    async def is_going_live(self, update: Update) -> bool:
        return update.id in self.live

    async def start(self) -> int:
        return await asyncio.wait_for(self.started.get(), 60)


def run(test: Callable[[Script], Awaitable[None]]) -> list[str]:
    async def main() -> list[str]:
        script = Script()
        await test(script)
        await script.queue.close()
        return script.log

    return asyncio.run(main())


def test_the_newest_is_driven_first_and_the_older_ones_follow_if_it_is_unfit() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        assert await script.start() == 1
        for identity in (2, 3, 4):
            script.queue.offer(update(identity))
        assert script.queue.waiting == 4
        assert [waiting.id for waiting in script.queue.updates] == [1, 4, 3, 2]
        script.outcomes.put_nowait(None)
        for expected in (4, 3, 2):
            assert await script.start() == expected
            script.outcomes.put_nowait(None)

    assert run(test) == ["drive 1", "drive 4", "drive 3", "drive 2"]


def test_the_older_ones_are_superseded_once_a_newer_one_is_found_fit() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        assert await script.start() == 1
        for identity in (2, 3, 4):
            script.queue.offer(update(identity))
        script.outcomes.put_nowait(None)
        assert await script.start() == 4
        script.queue.offer(update(5))  # arrives during the work, and waits
        assert script.log[-1] == "drive 4"
        await script.queue.found_fit(update(4))
        assert script.queue.waiting == 2
        script.outcomes.put_nowait(None)
        assert await script.start() == 5

    assert run(test) == ["drive 1", "drive 4", "supersede 2 by 4", "supersede 3 by 4", "drive 5"]


def test_one_that_is_going_live_is_driven_before_newer_ones_and_never_superseded() -> None:
    async def test(script: Script) -> None:
        for identity, state in ((3, State.CLAIMED), (1, State.LIVE), (2, State.CLAIMED)):
            script.queue.offer(update(identity, state))
        script.live.add(1)
        assert await script.start() == 1
        assert not await script.queue.cancel(1)
        script.outcomes.put_nowait(0.001)
        assert await script.start() == 1
        script.live.remove(1)
        script.outcomes.put_nowait(None)
        assert await script.start() == 3
        await script.queue.found_fit(update(3))

    assert run(test) == ["drive 1", "drive 1", "drive 3", "supersede 2 by 3"]


def test_one_that_cannot_be_superseded_is_not_driven_after_the_newer_one() -> None:
    async def test(script: Script) -> None:
        async def fail(older: Update, newer: Update) -> None:
            script.log.append(f"cannot supersede {older.id}")
            raise StateError("disk full")

        script.queue.offer(update(2))
        assert await script.start() == 2
        script.queue.offer(update(1))
        supersede, script.supersede = script.supersede, fail  # type: ignore[method-assign]
        await script.queue.found_fit(update(2))
        script.supersede = supersede  # type: ignore[method-assign]
        script.outcomes.put_nowait(None)
        await asyncio.sleep(0)
        script.queue.recheck()
        while script.queue.waiting:
            await asyncio.sleep(0)

    assert run(test) == ["drive 2", "cannot supersede 1", "supersede 1 by 2"]


def test_one_that_waits_is_cancelled() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        assert await script.start() == 1
        script.queue.offer(update(2))
        assert await script.queue.cancel(2)
        assert not await script.queue.cancel(2)
        assert not await script.queue.cancel(1)  # it is being worked on
        script.outcomes.put_nowait(3600)
        while not script.queue.deferred:
            await asyncio.sleep(0)
        assert await script.queue.cancel(1)
        script.queue.offer(update(3))
        assert await script.start() == 3

    assert run(test) == ["drive 1", "cancel 2", "cancel 1", "drive 3"]


def test_one_that_is_claimed_and_not_offered_yet_is_awaited() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        assert await script.start() == 1
        awaiting = [asyncio.create_task(script.queue.await_offer(2)) for _ in range(2)]
        await asyncio.sleep(0)
        script.queue.offer(update(3))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(task.done() for task in awaiting)
        script.queue.offer(update(2))
        await asyncio.gather(*awaiting)
        await script.queue.await_offer(1)  # the one that is being worked on is here, too
        assert script.queue.holds(2)
        assert await script.queue.cancel(2)
        assert not script.queue.holds(2)

    assert run(test) == ["drive 1", "cancel 2"]


def test_one_that_is_never_offered_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.updates.queue._HAND_OVER_S", 0.01)

    async def test(script: Script) -> None:
        await script.queue.await_offer(7)
        assert not await script.queue.cancel(7)

    assert run(test) == []


def test_one_that_cannot_be_cancelled_waits_on() -> None:
    async def test(script: Script) -> None:
        async def fail(_: Update) -> None:
            raise StateError("disk full")

        script.queue.offer(update(1))
        assert await script.start() == 1
        script.queue.offer(update(2))
        script.cancel = fail  # type: ignore[method-assign]
        with pytest.raises(StateError, match="disk full"):
            await script.queue.cancel(2)
        script.outcomes.put_nowait(None)
        assert await script.start() == 2

    assert run(test) == ["drive 1", "drive 2"]


def test_a_deferred_update_is_tried_again() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        for delay in (0.001, 0.002, None):
            await script.start()
            script.outcomes.put_nowait(delay)
        script.queue.offer(update(2))
        await script.start()

    assert run(test) == ["drive 1", "drive 1", "drive 1", "drive 2"]


def test_a_newer_update_is_driven_while_an_older_one_is_deferred() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(0.05)
        while not script.queue.deferred:
            await asyncio.sleep(0)
        script.queue.offer(update(2))
        assert await script.start() == 2
        script.outcomes.put_nowait(None)  # it was no checkpoint
        assert await script.start() == 1

    assert run(test) == ["drive 1", "drive 2", "drive 1"]


def test_an_update_that_arrived_during_the_work_is_driven_before_the_deferred_one() -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.queue.offer(update(2))
        script.outcomes.put_nowait(3600)
        assert await script.start() == 2
        await script.queue.found_fit(update(2))

    assert run(test) == ["drive 1", "drive 2", "supersede 1 by 2"]


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
        while not script.queue.deferred:
            await asyncio.sleep(0)
        assert script.queue.active is not None
        script.queue.recheck()
        await script.start()

    assert run(test) == ["drive 1", "drive 1"]


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

        script.fail = fail  # type: ignore[method-assign]
        script.queue.offer(update(1))
        assert await script.start() == 1
        script.outcomes.put_nowait(RuntimeError("broken"))
        script.queue.offer(update(2))
        assert await script.start() == 2
        script.outcomes.put_nowait(None)
        while not script.queue.deferred:
            await asyncio.sleep(0)
        script.queue.recheck()
        assert await script.start() == 1  # nobody else could end it

    assert run(test) == ["drive 1", "drive 2", "drive 1"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_fault_of_the_disk_ends_no_update(fault: int) -> None:
    async def test(script: Script) -> None:
        script.queue.offer(update(1))
        await script.start()
        script.outcomes.put_nowait(OSError(fault, "the disk"))
        while not script.queue.deferred:
            await asyncio.sleep(0)
        script.queue.recheck()
        await script.start()

    assert run(test) == ["drive 1", "drive 1"]
