"""The measurements of benchmarks.serving: each function runs servers under load and returns rows of results."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.checks import Swap
from benchmarks.serving.contention import contention
from benchmarks.serving.daemon import PREPARES, SIDE, Edged, swappable
from benchmarks.serving.effort import RATE, Effort, Rows, figures
from benchmarks.serving.endurance import kill, memory, swaps
from benchmarks.serving.load import Load, between
from benchmarks.serving.long_load import long_load
from benchmarks.serving.overhead import overhead
from benchmarks.serving.peers.server import Peer, missing
from benchmarks.serving.processes import tree_bytes


def reload(effort: Effort) -> Rows:
    """Reload edged, Triton and MLServer under load, one after another, with the same network and weights."""
    with tempfile.TemporaryDirectory() as scratch, swappable(worker=PREPARES) as edged:
        rows = [_reloads(edged, effort)]
        store = edged.artifact().parent
        artifacts = sorted(store.iterdir())
        for name in [name for name in ("triton", "mlserver") if name in effort.compare]:
            if reason := missing(effort.peers, name):
                rows.append({"server": name, "missing": reason})
                continue
            with Peer(name, effort.peers, Path(scratch), artifacts, SIDE) as peer:
                rows.append(_reloads(peer, effort))
    return rows


def _reloads(server: Edged | Peer, effort: Effort) -> dict[str, Any]:
    server.reload()  # permanent allocations of the first reload are no leak
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
        "steady": figures(steady),
        "swapping": figures(swapping),
        "memory_before": before,
        "memory_after": tree_bytes(server.pid),
    }


SECTIONS: dict[str, Callable[[Effort], Rows]] = {
    "reload": reload,
    "swaps": swaps,
    "contention": contention,
    "overhead": overhead,
    "memory": memory,
    "kill": kill,
    "endurance": long_load,
}
