"""How a generation serves, as both ends of its channel need to know it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batching:
    """How far requests are gathered.

    Attributes:
        max_batch: Most images in one forward pass; 1 gathers nothing.
        max_delay_s: Seconds that a request may wait for others while nothing is computed; 0 takes what is there.
    """

    max_batch: int = 1
    max_delay_s: float = 0.0
