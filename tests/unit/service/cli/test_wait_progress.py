from __future__ import annotations

import io
from typing import Any

from service.cli.wait_progress import WaitProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def update(
    state: str, stage: str | None = None, done: int = 0, total: int | None = None, **more: Any
) -> dict[str, Any]:
    progress = None if stage is None else {"stage": stage, "done": done, "total": total}
    if progress is not None and "waits_for" in more:
        progress["waits_for"] = more.pop("waits_for")
    return {"id": 7, "model": "shelf", "file_name": "best.pt", "state": state, "progress": progress, **more}


def lines(*steps: tuple[float, dict[str, Any]]) -> list[str]:
    """What is written off a terminal for updates that are seen at these seconds."""
    stream, clock = io.StringIO(), Clock()
    progress = WaitProgress(stream, clock)
    for seconds, seen in steps:
        clock.now = 100.0 + seconds
        progress.show(seen)
    return [line.replace("update 7 of shelf (best.pt): ", "") for line in stream.getvalue().splitlines()]


def test_a_line_for_each_stage_with_the_time() -> None:
    settled = {"settle": 0.5, "claim": 0.25}
    assert lines(
        (0.2, update("DROPPED")),
        (0.4, update("DROPPED")),
        (1.0, update("CLAIMED", stages=settled)),
        (2.0, update("CLAIMED", "verify", stages=settled)),
        (2.5, update("CLAIMED", stages=settled)),  # for a moment between two stages
        (3.0, update("LOADED", "quantize", 3, 21, stages={**settled, "verify": 0.1, "load": 0.2})),
        (4.0, update("LOADED", "quantize", 4, 21, stages={**settled, "verify": 0.1, "load": 0.2})),
        (9.0, update("COMMITTED", stages={**settled, "verify": 0.1, "load": 0.2, "quantize": 5.0, "probation": 0.5})),
    ) == [
        "    0.2 s  DROPPED",
        "    1.0 s  settle took 0.50 s",
        "    1.0 s  claim took 0.25 s",
        "    1.0 s  CLAIMED, until it is its turn and a worker has started",
        "    2.0 s  verify",
        "    3.0 s  load took 0.20 s",
        "    3.0 s  quantize 3/21",
        "    9.0 s  probation took 0.50 s",
        "    9.0 s  COMMITTED",
    ]


def test_a_long_stage_is_repeated_every_half_minute() -> None:
    steps = [(float(seconds), update("LOADED", "quantize", seconds, 100)) for seconds in range(0, 70, 10)]
    assert lines(*steps) == ["    0.0 s  quantize 0/100", "   30.0 s  quantize 30/100", "   60.0 s  quantize 60/100"]


def test_the_reason_of_a_postponement_is_shown() -> None:
    deferred = update("DEFERRED", code="temperature", reason="81 C, worker.defer_above_c is 80")
    assert lines((1.0, deferred)) == ["    1.0 s  DEFERRED: 81 C, worker.defer_above_c is 80"]


def test_a_terminal_has_one_line_that_ends_empty() -> None:
    stream = Terminal()
    progress = WaitProgress(stream)
    for seen in (update("LOADED", "quantize", 3, 21), update("COMMITTED")):
        progress.show(seen)
    progress.end()
    assert stream.getvalue() == "\r\x1b[Kupdate 7 of shelf (best.pt): quantize 3/21\r\x1b[K\r\x1b[K"


def test_what_the_worker_waits_for_is_a_change() -> None:
    assert lines(
        (1.0, update("CLAIMED", "start")),
        (6.0, update("CLAIMED", "start", waits_for="a core")),
        (11.0, update("CLAIMED", "quantize", 3, 21, waits_for="a core")),
        (12.0, update("CLAIMED", "quantize", 4, 21)),
    ) == [
        "    1.0 s  start",
        "    6.0 s  start, waits for a core",
        "   11.0 s  quantize, waits for a core 3/21",
        "   12.0 s  quantize 4/21",
    ]
