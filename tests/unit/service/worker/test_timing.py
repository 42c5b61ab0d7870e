"""Stage times and the memory limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from edged.errors import MemoryLimitError
from edged.memory import peak_bytes, resident_bytes
from edged.progress import SilentListener
from service.worker.timing import TimingListener


class Recorder:
    """A listener that records every report."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.seen.append(name)
        yield
        self.seen.append(f"/{name}")

    def progress(self, done: int, total: int) -> None:
        self.seen.append((done, total))

    def planned(self, plan: Mapping[str, Any]) -> None:
        self.seen.append(plan)


def test_a_plan_is_passed_on() -> None:
    inner = Recorder()
    TimingListener(inner).planned({"peak_bytes": 1})
    assert inner.seen == [{"peak_bytes": 1}]


def test_progress_is_forwarded_and_stage_times_add_up() -> None:
    inner = Recorder()
    watch = TimingListener(inner)
    for _ in range(2):
        with watch.stage("outer"), watch.stage("inner"):
            watch.progress(1, 2)
    assert inner.seen == ["outer", "inner", (1, 2), "/inner", "/outer"] * 2
    assert watch.seconds["outer"] >= watch.seconds["inner"] > 0


def test_a_failed_stage_is_timed_too() -> None:
    watch = TimingListener(SilentListener())
    with pytest.raises(ZeroDivisionError), watch.stage("bad"):
        _ = 1 / 0
    assert "bad" in watch.seconds


def test_the_limit_holds() -> None:
    used = resident_bytes()
    assert 1 << 20 < used <= peak_bytes()
    TimingListener(SilentListener(), used * 4).progress(1, 2)
    with pytest.raises(MemoryLimitError, match="1 MiB it was given"):
        TimingListener(SilentListener(), 1 << 20).progress(1, 2)
