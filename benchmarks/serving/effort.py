"""How much benchmarks.serving measures, and the form of its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.load import Answer, latency

Rows = list[dict[str, Any]]
RATE = 50.0  # requests per second
PEERS = ("triton", "uvicorn", "mlserver", "litserve")


@dataclass(frozen=True)
class Effort:
    """Amounts of load, swaps and requests.

    Attributes:
        steady_s: Seconds of load before the first event.
        reloads: Reloads of each server.
        swaps: Swaps of edged in one run under load.
        drops: Number of swaps to freshly dropped checkpoints; the others alternate between two generations.
        rate: Requests per second during these swaps.
        requests: Lowest number of requests during and after the swaps.
        quantizing_s: Seconds of load while another model is quantized.
        variants: Number of settings that the latency is measured with meanwhile.
        durations: Quantizations whose time is measured, for each variant with and without load.
        duration_images: Number of their images.
        rounds: Requests to each server, one at a time.
        together: Requests to each server, several at a time.
        memory_swaps: Swaps without load.
        minutes: Minutes of load from another client.
        peers: Folder with the peers' virtual environments.
        compare: Names of the peers to compare with.
    """

    steady_s: float = 20
    reloads: int = 10
    swaps: int = 200
    drops: int = 10
    rate: float = 100
    requests: int = 50_000
    quantizing_s: float = 30
    variants: int = 7
    durations: int = 3
    duration_images: int = 128
    rounds: int = 1000
    together: int = 3200
    memory_swaps: int = 100
    minutes: float = 10
    peers: Path | None = None
    compare: tuple[str, ...] = PEERS


QUICK = Effort(
    steady_s=8,
    reloads=5,
    swaps=20,
    drops=2,
    rate=100,
    requests=3000,
    quantizing_s=8,
    variants=3,
    durations=1,
    duration_images=32,
    rounds=200,
    together=640,
    memory_swaps=20,
    minutes=2,
)


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Return latencies in milliseconds."""
    return dataclasses.asdict(latency(answers))
