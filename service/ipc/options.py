"""Options of a generation that both ends of its channel need. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BATCH = 128  # per request: bounds the memory that a small body of tiny images can take


@dataclass(frozen=True)
class Batching:
    """How requests are gathered into batches.

    Attributes:
        max_batch: Largest number of images in one forward pass; 1 disables batching.
        max_delay_s: Seconds that a request may wait for others while the generation is idle; with 0, a batch contains
            only requests that are waiting already.
    """

    max_batch: int = 1
    max_delay_s: float = 0.0
