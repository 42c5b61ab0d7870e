"""Refusals: counted each, logged at most once a minute."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from service.http.refusals import GATHER_S, LOG_EVERY_S, REASONS, Refusals
from service.metrics.registry import Metrics


def test_each_is_counted_and_a_line_a_minute_sums_them_up(caplog: pytest.LogCaptureFixture) -> None:
    now, counted = 1000.0, Counter[str]()
    later: list[tuple[float, Callable[[], None]]] = []
    refusals = Refusals(
        lambda reason: counted.update([reason]), lambda: now, lambda delay_s, call: later.append((delay_s, call))
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            refusals.note("slow_head")
        refusals.note("idle")
        ((delay_s, log),) = later
        assert (delay_s, caplog.messages) == (GATHER_S, [])
        log()
        assert ": 3 request heads not complete in time, 1 idle connection closed to make room;" in caplog.messages[0]
        now += 20
        refusals.note("idle")
        assert later[1][0] == LOG_EVERY_S - 20
        now += LOG_EVERY_S - 20
        later[1][1]()
        assert ": 1 idle connection closed to make room;" in caplog.messages[1]
        now += 2 * LOG_EVERY_S
        refusals.note("idle")
    assert later[2][0] == GATHER_S
    assert counted == {"slow_head": 3, "idle": 3}


def test_every_reason_has_a_series_from_the_start() -> None:
    metrics = Metrics(CollectorRegistry())
    for reason in REASONS:
        assert metrics.registry.get_sample_value("edged_http_refused_total", {"reason": reason}) == 0
        Refusals(metrics.count_http_refusal, call_later=lambda *_: None).note(reason)
        assert metrics.registry.get_sample_value("edged_http_refused_total", {"reason": reason}) == 1
