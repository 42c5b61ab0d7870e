import os
from types import SimpleNamespace

import pytest

from service.daemon.samples import EVERY_S, KEEP_S, Samples
from service.serving.fork_client import ForkServer
from service.serving.limits import ServingLimits
from service.serving.model_server import ModelServer


@pytest.fixture
def service():
    made = ModelServer("m", lambda number: None, ForkServer(), ServingLimits())
    made.live = SimpleNamespace(pid=os.getpid())
    return made


def test_a_sample_covers_the_time_since_the_last_one(service):
    samples = Samples()
    for status, seconds in ((200, 0.01), (200, 0.03), (503, 1.0)):
        service.recent.note(status, seconds)
    samples.take_if_due(100.0, {"m": service})
    service.recent.note(429, 1.0)
    samples.take_if_due(100.0 + EVERY_S - 0.1, {"m": service})  # not yet
    samples.take_if_due(100.0 + EVERY_S, {"m": service})
    first, second = samples.of("m")
    assert (first.at, first.requests, first.failures) == (100.0, 3, 1)
    assert (first.p50_s, first.p99_s) == (pytest.approx(0.01, rel=0.05), pytest.approx(0.03, rel=0.05))
    assert first.memory_bytes > 1 << 20
    assert (second.requests, second.failures, second.p99_s) == (1, 0, None)


def test_an_hour_is_kept_and_models_that_are_gone_are_not(service):
    samples = Samples()
    for tick in range(500):
        samples.take_if_due(tick * EVERY_S, {"m": service})
    kept = samples.of("m")
    assert len(kept) * EVERY_S == KEEP_S
    assert kept[-1].at == 499 * EVERY_S
    samples.take_if_due(1e6, {})
    assert samples.of("m") == []
