import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.serving.request_stats import GenerationStats, RequestStats

SECONDS = st.floats(1e-4, 200)


def traffic(answers):
    counted = RequestStats()
    for status, seconds in answers:
        counted.note(status, seconds)
    return counted


def test_without_requests_there_is_nothing_to_say():
    assert (RequestStats().error_rate, RequestStats().quantile_s(0.99)) == (0.0, None)


def test_only_faults_of_the_server_are_failures():
    counted = traffic([(200, 1), (400, 1), (429, 1), (500, 1), (503, 1), (504, 1), (200, 1), (413, 1)])
    counted.note_unanswered(failure=False)  # a full queue
    counted.note_unanswered(failure=True)
    assert (counted.requests, counted.failures, counted.successes, counted.judged) == (10, 4, 2, 6)
    assert counted.error_rate == pytest.approx(100 * 4 / 6)  # faults of clients say nothing of the server


def test_only_successes_are_timed():
    assert traffic([(200, 0.01), (504, 10.0)]).quantile_s(1.0) == pytest.approx(0.01, rel=0.05)


@given(st.lists(SECONDS, min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_that_of_the_sorted_list_to_5_percent(seconds, share):
    exact = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    found = traffic([(200, value) for value in seconds]).quantile_s(share)
    assert exact * (1 - 1e-9) <= found <= exact * 1.05 * (1 + 1e-9)


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_no_latency_takes_more_than_one_of_301_buckets(seconds):
    counted = traffic([(200, value) for value in seconds])
    assert 1e-4 <= counted.quantile_s(1.0) <= 250


def test_requests_without_a_reply_are_not_timed():
    counted = RequestStats()
    counted.note_unanswered(failure=True)
    counted.note_unanswered(failure=False)
    assert (counted.requests, counted.failures, counted.successes) == (2, 1, 0)


def test_a_new_generation_begins_new_statistics_and_a_restart_does_not():
    counts = GenerationStats()
    counts.begin(1)
    counts.current.note(200, 0.1)
    counts.begin(1)
    assert (counts.current.requests, counts.previous.requests) == (1, 0)
    counts.begin(2)
    assert (counts.current.requests, counts.previous.requests) == (0, 1)
