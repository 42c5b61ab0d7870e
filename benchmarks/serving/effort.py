"""How much benchmarks.serving measures, and its rows of figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.load import Answer, latency

Rows = list[dict[str, Any]]
RATE = 50.0  # requests a second


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
    rate: float = 100
    requests: int = 50_000
    quantizing_s: float = 30
    rounds: int = 400
    memory_swaps: int = 100
    peers: Path | None = None


QUICK = Effort(
    steady_s=8, reloads=5, swaps=20, drops=2, rate=100, requests=3000, quantizing_s=8, rounds=200, memory_swaps=20
)


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Latencies in milliseconds."""
    return dataclasses.asdict(latency(answers))
