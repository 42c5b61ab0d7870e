"""What a generation must do to stay. The watch itself: tests/end_to_end/test_probation.py."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config.load import GatesConfig
from service.rollout.probation import ENOUGH_FOR_ERRORS, ENOUGH_FOR_P99, failure, failure_at_end, watch
from service.serving.fork_client import ForkServer
from service.serving.limits import ServingLimits
from service.serving.model_server import ModelServer
from service.serving.request_stats import RequestStats

GATES = GatesConfig(max_p99_ratio=2.0)


def traffic(good, bad=0, seconds=0.01, clients=0):
    """Requests that were answered, failed by a fault of the server, and were refused by a fault of their clients."""
    counted = RequestStats()
    for _ in range(clients):
        counted.note(400, seconds)
    for _ in range(good):
        counted.note(200, seconds)
    for _ in range(bad):
        counted.note(500, seconds)
    return counted


@pytest.mark.parametrize(
    ("now", "before", "crashes", "reason"),
    [
        (traffic(0), traffic(0), 0, None),
        (traffic(0), traffic(0), 1, None),
        (traffic(0), traffic(0), 2, "its process exited unexpectedly 2 times"),
        (traffic(0, 19), traffic(0), 0, None),
        (traffic(0, 20), traffic(0), 0, "20 of 20 requests failed (100.0 %), gates.max_error_rate is 5 %"),
        (traffic(95, 5), traffic(0), 0, None),
        (traffic(94, 6), traffic(0), 0, "6 of 100 requests failed (6.0 %)"),
        (traffic(94, 6), traffic(90, 10), 0, None),  # it was worse before
        (traffic(80, 20), traffic(90, 10), 0, "and 10.0 % failed before"),
        (traffic(94, 6), traffic(0, 19), 0, "6 of 100 requests failed"),  # too few before to be an excuse
        (traffic(13, 1, clients=1000), traffic(0), 0, None),  # clients make no evidence against it
        (traffic(14, 6, clients=1000), traffic(0), 0, "6 of 20 requests failed (30.0 %)"),  # nor for it
    ],
)
def test_a_failure_is_certain_before_the_end(now, before, crashes, reason):
    found = failure(now, before, crashes, GATES)
    assert found is None if reason is None else reason in found


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0, 100))
def test_no_generation_fails_for_errors_that_are_allowed_or_too_few(good, bad, allowed):
    found = failure(traffic(good, bad), traffic(0), 0, GatesConfig(max_error_rate=allowed))
    assert (found is not None) == (good + bad >= ENOUGH_FOR_ERRORS and 100.0 * bad / (good + bad) > allowed)


def service(now, before, fork_server=None):
    made = ModelServer("m", lambda number: None, fork_server or ForkServer(), ServingLimits())
    made.counts.current, made.counts.previous = now, before
    return made


@pytest.mark.parametrize(
    ("requests", "seconds", "gates", "fails"),
    [
        (ENOUGH_FOR_P99, 0.03, GATES, True),
        (ENOUGH_FOR_P99, 0.015, GATES, False),
        (ENOUGH_FOR_P99 - 1, 0.03, GATES, False),  # too few to speak of a p99
        (ENOUGH_FOR_P99, 0.03, GatesConfig(), False),  # no gate
    ],
)
def test_latency_is_judged_at_the_end(requests, seconds, gates, fails):
    found = failure_at_end(service(traffic(requests, seconds=seconds), traffic(1000)), 0, gates)
    assert (found is not None) == fails
    if fails:
        assert "p99 latency is 30." in found
        assert "gates.max_p99_ratio is 2" in found


def test_a_generation_without_a_process_at_the_end_has_failed():
    async def main():
        async with ForkServer() as fork_server:
            down = service(traffic(0), traffic(0), fork_server)
            down.keep(7)  # there is no such artifact
            try:
                return await asyncio.wait_for(watch(down, 7, 0.01, GATES), 60)
            finally:
                await down.close()

    assert "it does not answer" in asyncio.run(main())


def test_another_generation_ends_the_probation():
    async def main():
        return await watch(service(traffic(0), traffic(0)), 7, 3600.0, GATES)

    assert asyncio.run(main()) is None
