from __future__ import annotations

import asyncio

import pytest

from service.system.timeouts import within


def test_a_result_in_time_is_returned():
    async def answer() -> int:
        return 42

    assert asyncio.run(within(5, answer())) == 42


def test_an_error_is_raised():
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(within(5, fail()))


def test_work_that_exceeds_the_timeout_is_cancelled():
    async def main() -> bool:
        ended = asyncio.Event()

        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, forever())
        return ended.is_set()

    assert asyncio.run(main())


async def cancelled_after(ticks: int, task: asyncio.Task[object]) -> bool:
    """Cancel a task after some turns of the loop; false if it was done by then."""
    for _ in range(ticks):
        await asyncio.sleep(0)
    if task.done():
        return False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


@pytest.mark.parametrize("ticks", range(6))
def test_a_cancellation_together_with_the_result_is_not_lost(ticks: int):
    async def main() -> None:
        event = asyncio.Event()
        task = asyncio.create_task(within(5, event.wait()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        event.set()
        await cancelled_after(ticks, task)

    asyncio.run(main())
