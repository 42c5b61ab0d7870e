"""Calls in progress."""

from __future__ import annotations

import asyncio

import pytest

from service.grpc.calls import Calls


@pytest.mark.anyio
async def test_the_end_comes_with_that_of_the_last_call() -> None:
    calls = Calls()
    await calls.wait_for_end(0.0)  # at once
    with calls.one():
        with calls.one():
            pass
        waiting = asyncio.ensure_future(calls.wait_for_end(60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


@pytest.mark.anyio
async def test_the_wait_is_bounded() -> None:
    calls = Calls()
    with calls.one():
        await calls.wait_for_end(0.01)
