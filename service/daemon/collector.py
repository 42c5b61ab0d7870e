"""Garbage collection while the daemon runs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from service.config.current import CurrentConfig
from service.metrics.registry import Metrics
from service.storage import garbage
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.worker.lock import WorkerLock

log = logging.getLogger(__name__)


class GarbageCollector:
    """Removes what is not needed any more from the state folder.

    Args:
        config: Configuration in force.
        folder: State folder.
        disk: Thread for disk work.
        worker_lock: Held while calibration caches are removed, which a worker may use.
        metrics: Metrics of the daemon.
        removed: Called once something was removed.
    """

    def __init__(
        self,
        config: CurrentConfig,
        folder: StateFolder,
        disk: Disk,
        worker_lock: WorkerLock,
        metrics: Metrics,
        removed: Callable[[], Awaitable[None]],
    ) -> None:
        self._config = config
        self._folder = folder
        self._disk = disk
        self._worker_lock = worker_lock
        self._metrics = metrics
        self._removed = removed

    async def collect(self, dry_run: bool) -> dict[str, Any]:
        """Remove everything that is not needed any more. Calibration caches are skipped while a worker runs.

        Args:
            dry_run: Only report what would be removed.

        Returns:
            {"dry_run", "removed", "bytes", "skipped"}, see `service.storage.garbage.summary`.

        Raises:
            StateError: Something cannot be removed.
        """
        if self._worker_lock.locked():
            removed = await self._disk(self._collect, dry_run, caches=False)
            skipped = "calibration images: a worker is running, which may use them; try again when it has ended"
        else:
            async with self._worker_lock:
                removed, skipped = await self._disk(self._collect, dry_run, caches=True), None
        summary = garbage.summary(removed, self._folder.paths, dry_run=dry_run, skipped=skipped)
        if not dry_run:
            await self._removed()
            self._metrics.garbage_removed.inc(summary["bytes"])
            log.info("removed %d folders or files of %d bytes that are not needed", len(removed), summary["bytes"])
        return summary

    def _collect(self, dry_run: bool, *, caches: bool) -> list[garbage.Garbage]:
        config, folder = self._config.current, self._folder
        found = garbage.find(config, folder.paths, folder.store, folder.journal, caches=caches)
        if not dry_run:
            garbage.remove(found, config, folder.store)
        return found
