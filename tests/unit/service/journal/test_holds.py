import asyncio

import pytest

from service.journal.holds import Holds
from service.journal.store import Hold, Journal
from service.system.disk_thread import Disk


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


def run(journal, test):
    async def main():
        disk = Disk()
        try:
            holds = Holds(journal, disk)
            await holds.load()
            return await asyncio.wait_for(test(holds), 30)
        finally:
            disk.close()

    return asyncio.run(main())


def test_a_model_without_a_hold_is_not_held(journal):
    async def test(holds):
        return holds.of("m"), holds.why("m")

    assert run(journal, test) == (Hold(), None)


@pytest.mark.parametrize(
    ("hold", "code", "command"),
    [
        (Hold(pinned=True), "pinned", "edged unpin m"),
        (Hold(paused=True), "paused", "edged resume m"),
        (Hold(pinned=True, paused=True), "paused", "edged resume m"),
    ],
)
def test_a_hold_says_how_it_ends_also_after_a_restart(journal, hold, code, command):
    run(journal, lambda holds: holds.put("m", hold))

    async def look(holds):
        return holds.of("m"), holds.why("m"), holds.why("n")

    found, why, other = run(journal, look)
    assert (found, other) == (hold, None)
    assert why[0] == code
    assert command in why[1]


def test_waiting_ends_with_the_pin_and_not_before(journal):
    async def test(holds):
        await holds.until_unpinned("m")
        await holds.put("m", Hold(pinned=True))
        waiter = asyncio.create_task(holds.until_unpinned("m"))
        await holds.put("n", Hold(pinned=True))
        await holds.put("m", Hold(pinned=True, paused=True))
        await asyncio.sleep(0)
        assert not waiter.done()
        await holds.put("m", Hold(paused=True))
        await waiter

    run(journal, test)


def test_the_highest_version_only_rises_and_outlives_pins(journal):
    async def test(holds):
        await holds.raise_version("m", 7)
        await holds.put("m", Hold(pinned=True))
        await holds.raise_version("m", 6)
        await holds.put("m", Hold())
        return holds.of("m")

    assert run(journal, test) == Hold(highest_version=7)
    assert journal.holds() == {"m": Hold(highest_version=7)}
