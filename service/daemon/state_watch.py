"""Watches the state folder while the daemon runs: whether it is still there, and whether the journal is whole."""

from __future__ import annotations

import logging
import time

from edged.errors import StateError
from service.journal.holds import Holds
from service.metrics.registry import Metrics
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk

log = logging.getLogger(__name__)


class StateWatch:
    """Looks at the state folder whenever the drop folder is scanned.

    Args:
        folder: Open state folder.
        disk: Thread for disk work.
        holds: Written again once the journal was repaired.
        metrics: Shows what was found.

    Attributes:
        problem: Why nothing can be kept in the state folder now; None if it can.
    """

    def __init__(self, folder: StateFolder, disk: Disk, holds: Holds, metrics: Metrics) -> None:
        self.problem: str | None = None
        self._folder = folder
        self._disk = disk
        self._holds = holds
        self._metrics = metrics
        self._repaired = 0
        metrics.state_folder_up.set(True)
        self._show_repairs()

    @property
    def problems(self) -> list[str]:
        """What is wrong now, and what was repaired since the start, a line each."""
        return [*([] if self.problem is None else [self.problem]), *self._folder.journal.restored]

    async def look(self) -> bool:
        """Look once, and repair the journal where it is damaged; returns whether a problem is over."""
        before = self.problem
        self.problem = await self._disk(self._look)
        self._metrics.state_folder_up.set(self.problem is None)
        if self.problem is not None and self.problem != before:
            log.error("%s", self.problem)
        if self._show_repairs():
            await self._holds.write_again()
        if before is not None and self.problem is None:
            log.warning("state_dir %s can be used again; edged goes on", self._folder.paths.root)
            return True
        return False

    def _look(self) -> str | None:
        problem = self._folder.identity.problem()
        if problem is not None:
            return problem
        try:
            self._folder.identity.mend()
            self._folder.journal.check()
        except (OSError, StateError) as error:
            return str(error)
        return None

    def _show_repairs(self) -> bool:
        """Show when the journal was last repaired; returns whether it was since this was called last."""
        count = len(self._folder.journal.restored)
        if count == self._repaired:
            return False
        self._repaired = count
        self._metrics.journal_restored.set(time.time())
        return True
