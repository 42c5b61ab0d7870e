"""Requests that wait for a generation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.serving.channel import BusyError
from service.serving.waiting_room import WaitingRoom


def run(test: Callable[[WaitingRoom], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(WaitingRoom("digits")), 30)

    asyncio.run(main())


def test_an_open_room_makes_no_request_wait() -> None:
    async def test(room: WaitingRoom) -> None:
        assert await room.wait(5.0, 1) == 5.0

    run(test)


def test_requests_wait_until_they_are_released() -> None:
    async def test(room: WaitingRoom) -> None:
        room.hold()
        waiting = [asyncio.create_task(room.wait(20.0, 2)) for _ in range(2)]
        while room.held < 2:
            await asyncio.sleep(0)
        with pytest.raises(BusyError, match="'digits' has 2 requests waiting"):
            await room.wait(20.0, 2)
        room.release()
        assert all(0.0 < left_s < 20.0 for left_s in await asyncio.gather(*waiting))
        assert room.held == 0

    run(test)


def test_a_request_waits_no_longer_than_its_deadline() -> None:
    async def test(room: WaitingRoom) -> None:
        room.hold()
        assert await room.wait(0.01, 1) == 0.0
        assert room.held == 0

    run(test)
