from __future__ import annotations

import asyncio
import gc

import pytest

from service.system.timeouts import in_time, within


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


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_without_time_left_a_result_of_the_same_turn_is_too_late(timeout_s: float):
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_result(42))
        with pytest.raises(asyncio.TimeoutError):
            await in_time(future, timeout_s)

    asyncio.run(main())


def test_a_future_is_awaited_until_the_timeout():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        good, bad, late = loop.create_future(), loop.create_future(), loop.create_future()
        loop.call_soon(good.set_result, 42)
        assert await in_time(good, 5) == 42
        loop.call_soon(bad.set_exception, KeyError("x"))
        with pytest.raises(KeyError):
            await in_time(bad, 5)
        with pytest.raises(asyncio.TimeoutError):
            await in_time(late, 0.01)
        assert late.done()  # its producer sees that the result is no longer awaited

    asyncio.run(main())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("ticks", range(3))
def test_a_cancellation_together_with_the_future_is_not_lost(ticks: int, fails: bool):
    reported: list[dict[str, object]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        future = loop.create_future()
        task = asyncio.create_task(in_time(future, 5))
        await asyncio.sleep(0)
        if fails:
            future.set_exception(KeyError("x"))
        else:
            future.set_result(1)
        if not await cancelled_after(ticks, task) and fails:
            with pytest.raises(KeyError):
                await task
        del future, task
        gc.collect()

    asyncio.run(main())
    assert not reported  # an error that was never retrieved


def test_a_cancelled_wait_cancels_its_future():
    async def main() -> bool:
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(in_time(future, 5))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return future.cancelled()

    assert asyncio.run(main())
