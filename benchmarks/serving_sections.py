"""The measurements of benchmarks.serving, a function each: it runs servers under load and returns rows of figures."""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.serving_checks import Swap, answers_of_two, memory_grew, went_back
from benchmarks.serving_daemon import MODEL, SIDE, Edged, checkpoint, swappable
from benchmarks.serving_load import Answer, Connection, Load, between, latency
from benchmarks.serving_peers import Peer, missing
from benchmarks.serving_processes import eventually, resting_bytes, tree_bytes
from edged.models.registry import Architecture

Rows = list[dict[str, Any]]
RATE = 50.0  # requests a second
BIG = Architecture("resnet18", 10)  # takes minutes to quantize at BIG_SIDE pixels
BIG_SIDE = 160
FEW_SWAPS = 5
KILLS = 2


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        steady_s: Seconds of load before anything happens.
        reloads: Of each server.
        swaps: Of edged, in one run under load.
        drops: How many of these are freshly dropped checkpoints; the others go back and forth.
        rate: Requests a second through these swaps.
        requests: At least so many, through and after the swaps.
        quantizing_s: Seconds of load while another model is quantized.
        rounds: Requests to each server, one after another.
        memory_swaps: Without load.
        peers: Folder of the peers' virtual environments.
    """

    steady_s: float = 20
    reloads: int = 10
    swaps: int = 200
    drops: int = 10
    rate: float = 150
    requests: int = 50_000
    quantizing_s: float = 30
    rounds: int = 400
    memory_swaps: int = 100
    peers: Path | None = None


QUICK = Effort(
    steady_s=8, reloads=5, swaps=20, drops=2, rate=100, requests=3000, quantizing_s=8, rounds=200, memory_swaps=20
)


def reload(effort: Effort) -> Rows:
    """Reloads under load: edged, Triton and MLServer, one after another, with the same network and weights."""
    with tempfile.TemporaryDirectory() as scratch, swappable() as edged:
        rows = [_reloads(edged, effort)]
        store = edged.artifact().parent
        artifacts = sorted(store.iterdir())
        for name in ("triton", "mlserver"):
            if reason := missing(effort.peers, name):
                rows.append({"server": name, "missing": reason})
                continue
            with Peer(name, effort.peers, Path(scratch), artifacts, SIDE) as peer:
                rows.append(_reloads(peer, effort))
    return rows


def _reloads(server: Edged | Peer, effort: Effort) -> dict[str, Any]:
    server.reload()  # what a first one allocates for good is no leak
    before = tree_bytes(server.pid)
    windows: list[Swap] = []
    with Load(server.address, server.call, RATE) as load:
        time.sleep(effort.steady_s)
        for _ in range(effort.reloads):
            windows.append(server.reload())
            time.sleep(0.5)
    time.sleep(1)
    steady = [answer for answer in load.answers if answer.done < windows[0].start]
    swapping = [answer for window in windows for answer in between(load.answers, window.start, window.end)]
    return {
        "server": server.name,
        "reloads": len(windows),
        "reload_s": round(float(np.median([window.end - window.start for window in windows])), 2),
        "requests": len(load.answers),
        "failed": sum(answer.failed for answer in load.answers),
        "steady": _latency(steady),
        "swapping": _latency(swapping),
        "memory_before": before,
        "memory_after": tree_bytes(server.pid),
    }


def swaps(effort: Effort) -> Rows:
    """Many swaps and requests through edged: does any fail, come from two generations, or from one that is gone?"""
    with swappable() as edged:
        first = edged.generation
        done: list[Swap] = []
        memory: dict[int, int] = {}
        with Load(edged.address, edged.call, effort.rate) as load:
            time.sleep(effort.steady_s)
            begin = time.monotonic()
            while len(done) < effort.swaps:
                drop = effort.drops and len(done) % (effort.swaps // effort.drops) == 0
                done.append(edged.put_live() if drop else edged.reload())
                memory[len(done)] = tree_bytes(edged.pid) if len(done) in (FEW_SWAPS, effort.swaps) else 0
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
            "steady": _latency([answer for answer in answers if answer.done < begin]),
            "swapping": _latency(between(answers, begin, end)),
            "memory_few": memory[FEW_SWAPS],
            "memory_many": memory[effort.swaps],
        }
    ]


def contention(effort: Effort) -> Rows:
    """Latency while the worker quantizes another model, with what edged does about it and without."""
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "worker not niced": {"worker": {"nice": 0}},
        "OpenMP's own waiting": {"altered": "spinning"},
        "neither": {"worker": {"nice": 0}, "altered": "spinning"},
    }
    return [{"variant": name, **_contention(effort, options)} for name, options in variants.items()]


def _contention(effort: Effort, options: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        big = {"name": "big", "calibration": {"dir": str(folder / "digits")}, "probation_s": 0}
        big |= {"input": {"size": BIG_SIDE, "resize": BIG_SIDE}}
        with Edged(folder, others=[big], **options) as edged:
            edged.put_live()
            with Load(edged.address, edged.call, RATE) as load:
                time.sleep(effort.steady_s)
                idle = time.monotonic()
                edged.drop(checkpoint(BIG, 1, folder / "big.pt"), "big")
                edged.update_of("big.pt", "CALIBRATED")
                begin = time.monotonic()
                time.sleep(effort.quantizing_s)
                end = time.monotonic()
                edged.update_of("big.pt", "CALIBRATED")  # the figure is about quantizing only if it still goes on
    return {
        "failed": sum(answer.failed for answer in load.answers),
        "idle": _latency([answer for answer in load.answers if answer.done < idle]),
        "quantizing": _latency(between(load.answers, begin, end)),
    }


def overhead(effort: Effort) -> Rows:
    """One request after another with 1x3x224x224 FP32, round robin over the servers; nothing is computed."""
    side = 224
    rows: Rows = []
    with ExitStack() as running:
        scratch = Path(running.enter_context(tempfile.TemporaryDirectory()))
        edged = scratch / "edged"
        edged.mkdir()
        servers: list[Edged | Peer] = [running.enter_context(Edged(edged, side=side, altered="empty"))]
        servers[0].put_live()  # type: ignore[union-attr]
        for name in ("triton", "mlserver", "litserve", "uvicorn"):
            if reason := missing(effort.peers, name):
                rows.append({"server": name, "missing": reason})
            else:
                servers.append(running.enter_context(Peer(name, effort.peers, scratch, [], side)))
        connections = [Connection(server.address) for server in servers]
        answers: list[list[Answer]] = [[] for _ in servers]
        for turn in range(effort.rounds + 20):
            for server, connection, got in zip(servers, connections, answers, strict=True):
                answer = connection.ask(server.call)
                if turn >= 20:  # the first ones warm up
                    got.append(answer)
        for server, got in zip(servers, answers, strict=True):
            failed = sum(answer.failed for answer in got)
            rows.append({"server": server.name, "requests": len(got), "failed": failed, "closed": _latency(got)})
        for connection in connections:
            connection.close()
    return rows


def memory(effort: Effort) -> Rows:
    """Memory of the process tree after many swaps against after few, and a daemon that leaks on purpose."""
    return [
        {"variant": name, **_memory(effort.memory_swaps, altered)}
        for name, altered in (("edged", ""), ("leaking 1 MiB a swap on purpose", "leaking"))
    ]


def _memory(swaps: int, altered: str) -> dict[str, Any]:
    with swappable(altered=altered) as edged:
        few = many = 0
        for number in range(1, swaps + 1):
            edged.reload()
            if number == FEW_SWAPS:
                few = resting_bytes(edged.pid, processes=1)
        many = resting_bytes(edged.pid, processes=1)
    return {"swaps": swaps, "few": few, "many": many, "grew": memory_grew(few, many)}


def kill(effort: Effort) -> Rows:
    """Kill -9 of the generation under load."""
    rows: Rows = []
    with swappable() as edged:
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
    """Wait until another process than `killed` answers."""
    model = f"/v2/models/{MODEL}/ready"

    def look() -> bool:
        try:
            return bool(edged.get(model)["ready"]) and edged.generation_pid() != killed
        except (Exception, psutil.Error, StopIteration):
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


def _latency(answers: list[Answer]) -> dict[str, float]:
    return dataclasses.asdict(latency(answers))


SECTIONS: dict[str, Callable[[Effort], Rows]] = {
    "reload": reload,
    "swaps": swaps,
    "contention": contention,
    "overhead": overhead,
    "memory": memory,
    "kill": kill,
}
