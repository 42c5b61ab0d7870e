"""Refusals: counted each, logged at most once a minute."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry

from service.http.refusals import LOG_EVERY_S, REASONS, Refusals
from service.metrics.registry import Metrics


def test_each_is_counted_and_a_line_a_minute_sums_them_up(caplog: pytest.LogCaptureFixture) -> None:
    now, counted = 1000.0, Counter[str]()
    refusals = Refusals(lambda reason: counted.update([reason]), lambda: now)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            refusals.note("slow_head")
        refusals.note("idle")
        assert len(caplog.messages) == 1
        assert ": 1 request heads not complete in time;" in caplog.messages[0]
        now += LOG_EVERY_S
        refusals.note("idle")
    assert len(caplog.messages) == 2
    assert ": 2 request heads not complete in time, 2 idle connections closed to make room;" in caplog.messages[1]
    assert counted == {"slow_head": 3, "idle": 2}


def test_every_reason_has_a_series_from_the_start() -> None:
    metrics = Metrics(CollectorRegistry())
    for reason in REASONS:
        assert metrics.registry.get_sample_value("edged_http_refused_total", {"reason": reason}) == 0
        Refusals(metrics.count_http_refusal).note(reason)
        assert metrics.registry.get_sample_value("edged_http_refused_total", {"reason": reason}) == 1
