"""Measurements of edged alone: many swaps, memory after them, a killed process. Used by benchmarks.serving."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil

from benchmarks.serving.checks import Swap, answers_of_two, memory_grew, went_back
from benchmarks.serving.daemon import MODEL, PREPARES, Edged, swappable
from benchmarks.serving.effort import RATE, Effort, Rows, figures
from benchmarks.serving.load import Answer, Load, between
from benchmarks.serving.processes import eventually, own_bytes
from edged.errors import EdgedError

FEW_SWAPS = 5
SWAP_PERIOD_S = 1.0  # a swap takes a tenth of that; continuous swaps would measure loading
KILLS = 2
AT_REST = 2  # processes below the supervisor: a generation and the fork server


def swaps(effort: Effort, **settings: Any) -> Rows:
    """Send requests during many swaps; count failures and responses of mixed or retired generations.

    Args:
        effort: How many.
        settings: Sections of the daemon's config.
    """
    with swappable(**settings) as edged:
        first = edged.generation
        done: list[Swap] = []
        memory: dict[int, int] = {}
        with Load(edged.address, edged.call, effort.rate) as load:
            time.sleep(effort.steady_s)
            begin = time.monotonic()
            while len(done) < effort.swaps:
                drop = effort.drops and len(done) % (effort.swaps // effort.drops) == 0
                next_s = time.monotonic() + SWAP_PERIOD_S
                done.append(edged.put_live() if drop else edged.reload())
                time.sleep(max(0.0, next_s - time.monotonic()))
                memory[len(done)] = own_bytes(edged.pid) if len(done) in (FEW_SWAPS, effort.swaps) else 0
            end = time.monotonic()
            eventually(lambda: len(load.answers) >= effort.requests, "enough requests", 3600)
        answers = load.answers
    return [
        {
            "swaps": len(done),
            "drops": effort.drops,
            "rate": effort.rate,
            "requests": len(answers),
            "during": len(between(answers, begin, end)),
            "failed": sum(answer.failed for answer in answers),
            "seconds": round(end - begin),
            "generations": len({answer.version for answer in answers if not answer.failed}),
            "of_two": answers_of_two(answers)[:5],
            "went_back": went_back(answers, first, done)[:5],
            "steady": figures([answer for answer in answers if answer.done < begin]),
            "swapping": figures(between(answers, begin, end)),
            "memory_few": memory[FEW_SWAPS],
            "memory_many": memory[effort.swaps],
        }
    ]


def memory(effort: Effort) -> Rows:
    """Compare memory of the process tree after many and few swaps, also for a daemon that leaks on purpose."""
    return [
        {"variant": name, **_memory(effort.memory_swaps, altered)}
        for name, altered in (("edged", ""), ("leaking 1 MiB a swap on purpose", "leaking"))
    ]


def _memory(swaps: int, altered: str) -> dict[str, Any]:
    with swappable(altered=altered, worker=PREPARES) as edged:
        few = many = 0
        for number in range(1, swaps + 1):
            edged.reload()
            if number == FEW_SWAPS:
                few = own_bytes(edged.pid, AT_REST)
        many = own_bytes(edged.pid, AT_REST)
    return {"swaps": swaps, "few": few, "many": many, "grew": memory_grew(few, many)}


def kill(effort: Effort) -> Rows:
    """Kill the generation under load and measure the recovery."""
    rows: Rows = []
    with swappable(worker=PREPARES) as edged:
        load_s = edged.reload()
        with Load(edged.address, edged.call, RATE) as load:
            time.sleep(effort.steady_s / 4)
            kills = []
            for _ in range(KILLS):
                pid = edged.generation_pid()
                kills.append(time.monotonic())
                os.kill(pid, signal.SIGKILL)
                _when_serving(edged, pid)
                time.sleep(2)
        answers = sorted(load.answers, key=lambda answer: answer.sent)
        for at, until in zip(kills, [*kills[1:], float("inf")], strict=True):
            rows.append(_recovery(answers, at, until) | {"swap_s": round(load_s.end - load_s.start, 2)})
    return rows


def _when_serving(edged: Edged, killed: int) -> None:
    """Wait until a process other than `killed` serves."""
    model = f"/v2/models/{MODEL}/ready"

    def look() -> bool:
        try:
            return bool(edged.get(model)["ready"]) and edged.generation_pid() != killed
        except (EdgedError, psutil.Error, StopIteration):
            return False

    eventually(look, "a generation that serves again")


def _recovery(answers: list[Answer], at: float, until: float) -> dict[str, Any]:
    after = [answer for answer in answers if at < answer.done and answer.sent < until]
    failed = [answer for answer in after if answer.failed and answer.done < until]
    back = min((answer.done for answer in after if not answer.failed and answer.sent > at), default=float("nan"))
    return {
        "recovered_s": round(back - at, 2),
        "in_flight": sum(answer.sent < at for answer in failed),
        "refused": sum(at <= answer.sent < back for answer in failed),
        "failed_later": sum(answer.sent >= back for answer in failed),
        "statuses": sorted({answer.status for answer in failed}),
    }
