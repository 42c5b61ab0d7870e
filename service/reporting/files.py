"""The files of a report. A failure to write one is logged and never fails an update."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from edged.atomic import make_folder, write_atomic
from edged.errors import EdgedError
from edged.json_document import MALFORMED
from service.reporting.data import COURSE, EVIDENCE, JSON, PAGE, ResourceTrace, folder_of, gather, is_of
from service.reporting.page import render
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk

log = logging.getLogger(__name__)


class Reports:
    """The reports of all updates, written and read from the event loop.

    Args:
        folder: State folder with the updates and their files.
        disk: Thread for disk work.
    """

    def __init__(self, folder: StateFolder, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk

    async def gather(self, update_id: int) -> JSON:
        """Return everything that is known of an update, see `service.reporting.data.gather`.

        Raises:
            UsageError: There is no such update.
        """
        folder = self._folder
        return await self._disk(gather, folder.journal, folder.store, folder.paths, update_id)

    async def write(self, update_id: int) -> None:
        """Write report.html next to report.json or reason.json, but never into the folder of an earlier update."""
        await self._disk(self._write, update_id)

    def _write(self, update_id: int) -> None:
        store, paths, journal = self._folder.store, self._folder.paths, self._folder.journal
        try:
            update = journal.get(update_id)
            folder = None if update is None else folder_of(update, store, paths)
            if update is None or folder is None or not is_of(update, folder):
                return
            write_atomic(folder / PAGE, render(gather(journal, store, paths, update_id)).encode())
        except (OSError, EdgedError, *MALFORMED) as error:
            log.warning("update %d: cannot write report.html: %r", update_id, error)


def keep_resource_trace(folder: Path, trace: ResourceTrace) -> None:
    """Write the resource trace of a worker into its staging folder, which is created if the worker failed early."""
    try:
        make_folder(folder)
        (folder / COURSE).write_bytes(trace.to_json())
    except OSError as error:
        log.warning(
            "update %d: cannot write the resource trace, so the report has no chart of the memory: %s",
            trace.update,
            error,
        )


def keep_evidence(source: Path, target: Path) -> None:
    """Copy the parts of a report from a worker's staging folder to the folder of its rejected file."""
    if not (source / COURSE).exists():  # no worker ran for this update
        return
    for name in EVIDENCE:
        try:
            (target / name).unlink(missing_ok=True)  # of an earlier update of the same file
            if (source / name).exists():
                shutil.copyfile(source / name, target / name)
        except OSError as error:
            log.warning("the report in %s leaves out %s, which cannot be copied: %s", target, name, error)
