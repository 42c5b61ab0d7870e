"""Which waiting requests a generation computes together, and how long the first of them waits for more.

A generation that batches has two threads. One reads requests and prepares them: it parses and decodes, while the other
computes. This is what lies between them. Imports no torch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from service.ipc.options import Batching

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """Requests in the order of their arrival, from the thread that prepares to the one that computes.

    Args:
        batching: How far they are gathered.
    """

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._changed = threading.Condition()
        self._entries: deque[tuple[T, int, float]] = deque()
        self._closed = False

    def put(self, entry: T, images: int, arrived: float) -> None:
        """Add a request. Waits while a whole batch is there already: what is read ahead takes memory.

        Args:
            entry: Handed out by `take`.
            images: How many it has.
            arrived: When, by time.monotonic().
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._images() < self._batching.max_batch)
            self._entries.append((entry, images, arrived))
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits for answers any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[T]:
        """What is computed next: one request, and those behind it that fit. Waits for the first; [] once closed.

        A request of more images than `max_batch` is computed by itself.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._entries)
            if self._entries:
                end = self._entries[0][2] + self._batching.max_delay_s
                self._changed.wait_for(self._is_settled, max(0.0, end - time.monotonic()))
            if self._closed:
                return []
            count = self._fitting()
            taken = [self._entries.popleft()[0] for _ in range(count)]
            self._changed.notify_all()
            return taken

    def _images(self) -> int:
        return sum(images for _, images, _ in self._entries)

    def _is_settled(self) -> bool:
        """Whether waiting longer cannot make the next batch larger."""
        return self._closed or self._images() >= self._batching.max_batch

    def _fitting(self) -> int:
        total = 0
        for count, (_, images, _) in enumerate(self._entries):
            total += images
            if count and total > self._batching.max_batch:
                return count
        return len(self._entries)


def warm_sizes(max_batch: int) -> list[int]:
    """Batch sizes that a new generation computes before it gets traffic, ascending.

    The first pass of a size takes several times as long as later ones, because kernels are made for it. Every small
    size is met under load, and the largest shows what memory it takes; those between would cost a slow board minutes.
    """
    return sorted(size for size in {*range(1, 9), max_batch} if size <= max_batch)
