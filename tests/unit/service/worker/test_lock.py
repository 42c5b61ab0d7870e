import asyncio

from hypothesis import given
from hypothesis import strategies as st

from service.worker.lock import WorkerLock


async def use(slot, name, priority, log, hold=None):
    async with slot.turn(priority):
        log.append(name)
        if hold is not None:
            await hold.wait()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.sets(st.integers(0, 7), max_size=4))
def test_the_highest_priority_goes_first_and_among_equals_the_first(priorities, cancelled):
    async def main():
        slot, log, hold = WorkerLock(), [], asyncio.Event()
        holder = asyncio.create_task(use(slot, "holder", 0, log, hold))
        await settle()
        assert slot.locked()
        tasks = [asyncio.create_task(use(slot, index, priority, log)) for index, priority in enumerate(priorities)]
        await settle()
        for index in cancelled & set(range(len(tasks))):
            tasks[index].cancel()
        hold.set()
        await asyncio.gather(holder, *tasks, return_exceptions=True)
        assert not slot.locked()
        return log

    left = [index for index in range(len(priorities)) if index not in cancelled]
    assert asyncio.run(main()) == ["holder", *sorted(left, key=lambda index: (-priorities[index], index))]


def test_a_waiter_that_is_cancelled_on_its_turn_passes_the_lock_on():
    async def main():
        slot, log, hold, tasks = WorkerLock(), [], asyncio.Event(), []

        async def cancel_the_next_one():
            async with slot.turn(0):
                await hold.wait()
            tasks[0].cancel()  # its turn is set, and it has not run yet

        holder = asyncio.create_task(cancel_the_next_one())
        await settle()
        tasks += [asyncio.create_task(use(slot, name, 0, log)) for name in ("first", "second")]
        await settle()
        hold.set()
        await asyncio.gather(holder, *tasks, return_exceptions=True)
        assert not slot.locked()
        return log

    assert asyncio.run(main()) == ["second"]


def test_the_default_priority_is_0_and_an_error_releases_the_lock():
    async def main():
        slot = WorkerLock()
        try:
            async with slot:
                assert slot.locked()
                raise KeyError
        except KeyError:
            return slot.locked()

    assert asyncio.run(main()) is False
