"""How many messages arrive at once, and how large they may be."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config.sections import ServeConfig
from service.grpc.arrival import Turns, largest_message, messages_at_once
from service.grpc.errors import Refusal, RefusedError

SIZES = st.integers(1, 1 << 32)
FULL = Refusal(503, "full", retry=True)


@given(SIZES, st.none() | SIZES)
def test_all_messages_together_are_within_the_bound(body: int, arriving: int | None) -> None:
    serve = ServeConfig(max_body_bytes=body, max_arriving_bytes=arriving)
    largest, count = largest_message(serve), messages_at_once(serve)
    assert 1 <= largest <= body
    assert count >= 1
    assert largest * count <= serve.arriving_bytes
    if serve.arriving_bytes >= 4:
        assert count >= 3
        assert 4 * largest * count <= 3 * serve.arriving_bytes  # the rest is for the holes that they leave in the heap


@pytest.mark.anyio
async def test_turns_come_in_order() -> None:
    turns, order = Turns(1, 60.0, FULL), []

    async def take(name: int) -> None:
        async with turns:
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(take(name) for name in range(5)))
    assert order == list(range(5))


@pytest.mark.anyio
async def test_waiting_ends_with_a_refusal() -> None:
    turns = Turns(1, 0.0, FULL)
    async with turns:
        with pytest.raises(RefusedError, match="full"):
            async with turns:
                pass
    async with turns:  # nothing was lost
        pass


@pytest.mark.anyio
async def test_who_is_cancelled_takes_no_turn() -> None:
    turns = Turns(1, 60.0, FULL)

    async def take() -> None:
        async with turns:
            pass

    async with turns:
        waiting = asyncio.ensure_future(take())
        await asyncio.sleep(0)
    waiting.cancel()  # at the moment that its turn has come
    await asyncio.wait({waiting})
    await asyncio.wait_for(take(), 60.0)
