"""The files that generations were made from: where one is kept, a damaged generation is made again from it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from service.config.current import CurrentConfig
from service.journal.update import Update
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.updates.files import UpdateFiles

log = logging.getLogger(__name__)


class KeptCheckpoints:
    """Checkpoints in the state folder: of open updates, and of those that were rejected, superseded or rolled back.

    The file of a committed update is not kept, because it is larger than all that was made from it.

    Args:
        config: Configuration in force.
        folder: State folder that holds them.
        disk: Thread for disk work.
        files: Claims a kept file again.

    Attributes:
        offer: Queues an update; None until the updates in the journal are resumed, which queues all of them.
    """

    def __init__(self, config: CurrentConfig, folder: StateFolder, disk: Disk, files: UpdateFiles) -> None:
        self.offer: Callable[[Update], None] | None = None
        self._config = config
        self._folder = folder
        self._disk = disk
        self._files = files

    async def is_kept(self, update: Update) -> bool:
        """Return whether the file of an update is still there."""
        return await self._disk(self._folder.kept_file, update) is not None

    async def make_again(self, update: Update) -> None:
        """Begin an update that takes the kept file of an earlier one again; nothing happens if it is not kept.

        Raises:
            StateError: The disk is full, or the state folder cannot be written.
        """
        model = self._config.model(update.model)
        if model is None or update.sha256 is None:
            return
        again = await self._files.claim_again(update, model.key(update.sha256))
        if again is None:
            return
        log.warning(
            "update %d of %s: %s is quantized again, because its generation is damaged",
            again.id,
            again.model,
            again.file_name,
        )
        if self.offer is not None:
            self.offer(again)
