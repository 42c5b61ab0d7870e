"""Admission of updates to the worker: one at a time, when the device's conditions and the disk allow it."""

from __future__ import annotations

import logging
import time

from edged.errors import StateError
from service.config.current import CurrentConfig
from service.config.load import ModelConfig
from service.journal.update import Update
from service.outcomes import Postponement
from service.storage.quota import Quota
from service.storage.state_folder import StateFolder
from service.system.device_state import DeviceState
from service.system.disk_thread import Disk
from service.updates.conditions import why_not_now
from service.worker.lock import WorkerLock

log = logging.getLogger(__name__)


class Admission:
    """Decides when the worker of an update may start.

    Args:
        config: Configuration in force.
        folder: State folder, which must have room for the result.
        disk: Thread for disk work.
        device: State of the device, such as its temperature.

    Attributes:
        lock: Held while a worker runs, and by whoever removes what a worker could use. The highest priority is next.
    """

    def __init__(self, config: CurrentConfig, folder: StateFolder, disk: Disk, device: DeviceState) -> None:
        self.lock = WorkerLock()
        self._config = config
        self._folder = folder
        self._disk = disk
        self._device = device

    async def why_not(self, update: Update, model: ModelConfig) -> Postponement | None:
        """Return why the worker of an update cannot start now; None if it can.

        Hold `lock`: caches may be removed to make room.

        Raises:
            StateError: Something that must go cannot be removed.
        """
        worker = self._config.current.worker
        postponement = await self._disk(why_not_now, worker, self._device, time.time())
        if postponement is not None:
            return postponement
        return await self._disk(self._quota().why_no_room, update, model, worker.recheck_s)

    async def free_space(self, model: ModelConfig) -> None:
        """Keep the state folder within storage.max_bytes after an update of `model`, as far as that is possible."""
        try:
            if self.lock.locked():
                await self._disk(self._quota().make_room, 0, caches=False)
            else:
                async with self.lock:
                    await self._disk(self._quota().make_room, 0, caches_of=model)
        except StateError as error:  # the update itself has succeeded; the next one tries again
            log.warning("model %s: %s", model.name, error)

    def _quota(self) -> Quota:
        return Quota(self._config.current, self._folder.paths, self._folder.store, self._folder.journal)
