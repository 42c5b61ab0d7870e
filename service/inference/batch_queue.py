"""The queue that decides which waiting requests a generation computes together, and how long the first one waits.

A generation that batches has two threads. One reads, parses and decodes requests while the other computes. This queue
connects them. Imports no torch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from service.ipc.options import Batching

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """A queue of requests, in the order of arrival, between the thread that prepares and the one that computes.

    Args:
        batching: How requests are gathered into batches.
    """

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._changed = threading.Condition()
        self._entries: deque[tuple[T, int, float]] = deque()
        self._closed = False

    def put(self, entry: T, images: int, arrived: float) -> None:
        """Add a request, after waiting while a full batch is queued: requests that are read ahead take memory.

        Args:
            entry: The request, which `take` returns.
            images: Number of its images.
            arrived: Its arrival by time.monotonic().
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._images() < self._batching.max_batch)
            self._entries.append((entry, images, arrived))
            self._changed.notify_all()

    def close(self) -> None:
        """Wake both threads: the supervisor closed the stream, so no request needs a reply."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[T]:
        """Take the requests of the next batch: the oldest one, and those after it that fit.

        Waits for the first request, and then up to `max_delay_s` for others. A request with more images than
        `max_batch` is computed alone.

        Returns:
            The requests, in the order of arrival; empty once the queue is closed.
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
        """Return whether waiting longer cannot make the next batch larger."""
        return self._closed or self._images() >= self._batching.max_batch

    def _fitting(self) -> int:
        total = 0
        for count, (_, images, _) in enumerate(self._entries):
            total += images
            if count and total > self._batching.max_batch:
                return count
        return len(self._entries)


def warm_sizes(max_batch: int) -> list[int]:
    """Return the batch sizes that a new generation computes before it gets traffic, ascending.

    The first pass of a size takes several times as long as later ones, because its kernels are prepared then. Every
    small size occurs under load, and the largest one shows how much memory is needed. All sizes between them would
    take minutes on a slow board.
    """
    return sorted(size for size in {*range(1, 9), max_batch} if size <= max_batch)
