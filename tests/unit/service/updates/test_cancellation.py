"""Cancellation of updates that are being worked on."""

from __future__ import annotations

import asyncio

import pytest

from service.updates.cancellation import Cancellations, UpdateCancelledError


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("stopped")


def test_work_is_stopped_and_its_update_reported_cancelled() -> None:
    async def main() -> None:
        cancellations, ended = Cancellations(), list[str]()
        work = asyncio.create_task(cancellations.run(1, forever(ended)))
        await asyncio.sleep(0)
        requests = [asyncio.create_task(cancellations.request(1)) for _ in range(2)]
        with pytest.raises(UpdateCancelledError):
            await work
        assert ended == ["stopped"]
        assert cancellations.is_requested(1)
        assert not any(request.done() for request in requests)  # not before it is journaled
        cancellations.settle(1, cancelled=True)
        assert await asyncio.gather(*requests) == [True, True]
        assert not cancellations.is_requested(1)

    asyncio.run(main())


def test_work_that_has_not_begun_does_not_begin() -> None:
    async def main() -> None:
        cancellations, ended = Cancellations(), list[str]()
        request = asyncio.create_task(cancellations.request(1))
        await asyncio.sleep(0)
        with pytest.raises(UpdateCancelledError):
            await cancellations.run(1, forever(ended))
        with pytest.raises(UpdateCancelledError):
            cancellations.begin_switch(1)
        assert ended == []
        cancellations.settle(1, cancelled=False)
        assert await request is False

    asyncio.run(main())


def test_a_switch_is_not_cancelled() -> None:
    async def main() -> None:
        cancellations = Cancellations()
        cancellations.begin_switch(1)
        assert await cancellations.request(1) is False
        cancellations.settle(1, cancelled=False)
        request = asyncio.create_task(cancellations.request(1))  # its next attempt may be
        await asyncio.sleep(0)
        assert cancellations.is_requested(1)
        request.cancel()

    asyncio.run(main())


def test_the_result_and_the_error_of_work_are_passed_on() -> None:
    async def result() -> int:
        return 7

    async def error() -> int:
        raise ZeroDivisionError

    async def main() -> None:
        cancellations = Cancellations()
        assert await cancellations.run(1, result()) == 7
        with pytest.raises(ZeroDivisionError):
            await cancellations.run(1, error())

    asyncio.run(main())


def test_a_stop_of_the_daemon_stops_the_work_without_cancelling_the_update() -> None:
    async def main() -> None:
        cancellations, ended = Cancellations(), list[str]()
        work = asyncio.create_task(cancellations.run(1, forever(ended)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert ended == ["stopped"]
        assert not cancellations.is_requested(1)

    asyncio.run(main())
