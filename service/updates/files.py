"""The files of an update: its claimed file, its staging folder, and what is kept of it once it is rejected."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from service.journal.repository import UpdateRepository
from service.journal.states import State
from service.journal.update import Update
from service.outcomes import Failure
from service.reporting.data import ResourceTrace
from service.reporting.files import keep_evidence, keep_resource_trace
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.units import iso_time
from service.updates.rejected import discard, reject


class UpdateFiles:
    """The files of all updates, handled from the event loop.

    Args:
        folder: State folder that holds them.
        disk: Thread for disk work.
        updates: Journal that knows which updates share a claimed file.
    """

    def __init__(self, folder: StateFolder, disk: Disk, updates: UpdateRepository) -> None:
        self._folder = folder
        self._disk = disk
        self._updates = updates

    def claimed(self, update: Update) -> Path:
        """Return the claimed file of an update."""
        return self._folder.claimed_file(update)

    def staged(self, update: Update) -> Path:
        """Return the staging folder of an update."""
        return self._folder.staged(update)

    def caches(self, model: str) -> Path:
        """Return the folder of a model's calibration caches."""
        return self._folder.paths.calibration(model)

    async def clear_staging(self, update: Update) -> None:
        """Remove the staging folder of an update."""
        await self._disk(shutil.rmtree, self.staged(update), ignore_errors=True)

    async def keep_resource_trace(self, update: Update, trace: ResourceTrace) -> None:
        """Write the resource trace of the worker into the staging folder of its update."""
        await self._disk(keep_resource_trace, self.staged(update), trace)

    async def discard_claim(self, update: Update) -> None:
        """Remove the claimed file of an update, unless another open update needs it."""
        if not await self._updates.shares_claim(update):
            await self._disk(discard, self.claimed(update))

    async def quarantine(self, update: Update, state: State, failure: Failure) -> None:
        """Move the claimed file of an update that will not be served to rejected/, with the reason and the evidence.

        The claimed file stays if another open update needs it. An update that was not claimed has no file to move.

        Args:
            update: Update whose file will not be served.
            state: Final state of the update.
            failure: Why it will not be served.
        """
        if update.sha256 is not None:
            shared = await self._updates.shares_claim(update)
            reason = {
                "update": update.id,
                "model": update.model,
                "file_name": update.file_name,
                "file_bytes": update.file_bytes,
                "sha256": update.sha256,
                "result": state.value.lower(),
                "code": failure.code,
                "reason": failure.reason,
                "at": iso_time(time.time()),
            }
            target = self._folder.paths.rejected / update.sha256
            await self._disk(reject, self.claimed(update), target, reason, keep_source=shared)
            await self._disk(keep_evidence, self.staged(update), target)
        await self.clear_staging(update)
