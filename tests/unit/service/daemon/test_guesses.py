import asyncio
import contextlib

import pytest

from service.daemon.guesses import LONGEST_S, OF_ALL, PER_ADDRESS, GuessError, Guesses


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def answered(guesses: Guesses, clock: Clock, address: str, seconds: float, a_second: int) -> list[float]:
    """Return when wrong tokens are answered that come at an even pace."""
    times = []
    for _ in range(int(seconds * a_second)):
        with contextlib.suppress(GuessError):
            times.append(clock.now + guesses.delay_s(address))
        clock.now += 1 / a_second
    return times


def test_a_few_are_answered_at_once_and_then_one_a_second() -> None:
    clock = Clock()
    times = answered(Guesses(clock), clock, "192.0.2.1", seconds=60, a_second=260)
    assert times == sorted(times)
    assert times[PER_ADDRESS.at_once - 1] < 1000.1
    assert len(times) == pytest.approx(60 / PER_ADDRESS.every_s + PER_ADDRESS.at_once + LONGEST_S, abs=1)
    for early, late in zip(times[PER_ADDRESS.at_once :], times[PER_ADDRESS.at_once + 1 :], strict=False):
        assert late - early == pytest.approx(PER_ADDRESS.every_s, abs=0.01)


def test_somebody_who_mistypes_does_not_wait() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for _ in range(100):
        assert guesses.delay_s("192.0.2.1") == 0
        clock.now += PER_ADDRESS.every_s


def test_addresses_do_not_wait_for_each_other_until_there_are_many() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    addresses = [f"192.0.2.{number}" for number in range(1, 251)]
    times = []
    for address in addresses:
        with contextlib.suppress(GuessError):
            times.append(guesses.delay_s(address))
    assert times[: OF_ALL.at_once] == [0] * OF_ALL.at_once
    assert max(times) <= LONGEST_S
    assert len(times) == OF_ALL.at_once + LONGEST_S / OF_ALL.every_s
    clock.now += OF_ALL.every_s
    assert guesses.delay_s("192.0.3.1") == pytest.approx(LONGEST_S)


def test_memory_is_bounded() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for number in range(5000):
        guesses.delay_s(f"10.0.{number >> 8}.{number & 255}")
        clock.now += 1
    assert len(guesses) == 1024


def test_a_client_has_a_whole_network_of_ipv6_addresses() -> None:
    for same in (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::"], ["192.0.2.1", "::ffff:192.0.2.1"]):
        guesses = Guesses(Clock())
        for address in same:
            guesses.delay_s(address)
        assert len(guesses) == 1
    guesses = Guesses(Clock())
    for address in ("2001:db8::1", "2001:db8:0:1::1", "fe80::1%eth0", "192.0.2.1", "192.0.2.2", ""):
        guesses.delay_s(address)
    assert len(guesses) == 6


def test_whoever_has_too_many_is_refused_without_waiting() -> None:
    async def main() -> None:
        guesses = Guesses(lambda: 0.0)
        for _ in range(PER_ADDRESS.at_once):
            await guesses.wait("192.0.2.1")
        waiting = [asyncio.ensure_future(guesses.wait("192.0.2.1")) for _ in range(int(LONGEST_S))]
        await asyncio.sleep(0)
        with pytest.raises(GuessError, match=r"too many wrong tokens from 192\.0\.2\.1"):
            await guesses.wait("192.0.2.1")
        assert not any(each.done() for each in waiting)
        for each in waiting:
            each.cancel()

    asyncio.run(main())
