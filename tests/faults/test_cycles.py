"""A daemon that swaps over and over keeps nothing; one that leaks on purpose is found out by the same check."""

from __future__ import annotations

import dataclasses
import os
import threading

import pytest

from benchmarks.faults.sections.cycles import COUNTED
from benchmarks.sick_device.cycles import MEMORY_SLACK, SLACK, Held, held, leaks, run

REST = Held(descriptors=30, segments=3, threads=10, processes=2, bytes=50 << 20)


@pytest.mark.parametrize("name", COUNTED[:-1])
def test_what_grows_beyond_the_slack_is_a_leak(name: str) -> None:
    before = getattr(REST, name)
    assert leaks(REST, dataclasses.replace(REST, **{name: before + SLACK})) == []
    assert leaks(REST, dataclasses.replace(REST, **{name: before + SLACK + 1})) == [
        f"{name} grew from {before} to {before + SLACK + 1}"
    ]


def test_memory_may_grow_by_a_share() -> None:
    assert leaks(REST, dataclasses.replace(REST, bytes=int(REST.bytes * (1 + MEMORY_SLACK)))) == []
    assert leaks(REST, dataclasses.replace(REST, bytes=int(REST.bytes * (1 + MEMORY_SLACK)) + 1)) != []


def test_what_this_process_holds_is_counted() -> None:
    before, over = held(os.getpid()), threading.Event()
    segment = os.memfd_create("held")
    thread = threading.Thread(target=over.wait)
    thread.start()
    after = held(os.getpid())
    over.set()
    thread.join()
    os.close(segment)
    assert (after.segments - before.segments, after.threads - before.threads) == (1, 1)
    assert after.descriptors > before.descriptors


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cycles_leave_nothing_and_leaks_are_found() -> None:
    assert run(120)["leaks"] == []
    found = run(24, altered="dripping")["leaks"]
    assert [leak.split()[0] for leak in found] == list(COUNTED)
