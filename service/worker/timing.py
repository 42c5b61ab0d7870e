"""Measurement of the duration of each stage, and enforcement of the memory limit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from edged.device import CPU
from edged.errors import MemoryLimitError
from edged.memory import present_bytes
from edged.progress import ProgressListener


class TimingListener:
    """A listener that forwards all progress to another one and measures the duration of each stage.

    Args:
        inner: Listener that receives all progress.
        memory_limit: Limit in bytes, checked at every step, because the library itself cannot be interrupted.
        device: Device whose memory is limited.

    Attributes:
        seconds: Wall time in seconds by stage; the time of a nested stage counts for both stages.
    """

    def __init__(self, inner: ProgressListener, memory_limit: int | None = None, device: torch.device = CPU) -> None:
        self._inner = inner
        self._device = device
        self._memory_limit = memory_limit
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the time of the stage `name`."""
        start = time.monotonic()
        try:
            with self._inner.stage(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def progress(self, done: int, total: int) -> None:
        """Forward progress, and check the memory limit.

        Raises:
            MemoryLimitError: More memory is in use than the limit.
        """
        self._inner.progress(done, total)
        if self._memory_limit is not None and (used := present_bytes(self._device)) > self._memory_limit:
            raise MemoryLimitError(
                f"needs more than the {self._memory_limit >> 20} MiB it was given ({used >> 20} MiB in use);"
                " raise the memory limit or use fewer calibration images"
            )

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Forward the memory plan."""
        self._inner.planned(plan)
