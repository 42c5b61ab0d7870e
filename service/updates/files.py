"""The files of an update: its claimed file, its staging folder, and what is kept of it once it has ended."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error, make_folder
from edged.errors import StateError
from service.journal.states import RETRIABLE, State, is_end
from service.journal.update import Update
from service.outcomes import Failure
from service.reporting.data import ResourceTrace
from service.reporting.files import keep_evidence, keep_resource_trace
from service.storage.claim_origin import Origin, write_origin
from service.storage.leftovers import sweep_temporaries
from service.storage.paths import CLAIMED_NAME
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.units import iso_time
from service.updates.kept import discard, keep, link

log = logging.getLogger(__name__)


class UpdateFiles:
    """The files of all updates, handled from the event loop.

    Args:
        folder: State folder that holds them.
        disk: Thread for disk work.
    """

    def __init__(self, folder: StateFolder, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk

    def claimed(self, update: Update) -> Path:
        """Return the claimed file of an update."""
        return self._folder.claimed_file(update)

    def staged(self, update: Update) -> Path:
        """Return the staging folder of an update."""
        return self._folder.staged(update)

    def caches(self, model: str) -> Path:
        """Return the folder of a model's calibration caches."""
        return self._folder.paths.calibration(model)

    def engines(self, model: str) -> Path:
        """Return the folder of a model's compiled engines."""
        return self._folder.paths.engine_cache(model)

    def workplace(self, update: Update) -> Path:
        """Return the folder that the worker of an update may write to, which holds its staging folder."""
        return self._folder.paths.workplace(update.id)

    async def prepare_for_worker(self, update: Update) -> None:
        """Make the workplace of an update anew.

        Raises:
            StateError: The disk is full, or the state folder cannot be written.
        """
        await self.clear_staging(update)
        await self._disk(self._make, self.workplace(update))

    async def clear_half_written(self, update: Update) -> None:
        """Remove what the worker of an update was writing when it was killed: an artifact, a calibration cache."""
        staged = self.staged(update)
        await self._disk(sweep_temporaries, staged.parent, staged.name)
        await self._disk(sweep_temporaries, self.caches(update.model))

    @staticmethod
    def _make(folder: Path) -> None:
        with as_state_error(folder):
            make_folder(folder)

    async def clear_staging(self, update: Update) -> None:
        """Remove the workplace of an update with all that its worker has left."""
        await self._disk(shutil.rmtree, self.workplace(update), ignore_errors=True)

    async def odd_file(self, update: Update) -> str | None:
        """Return the name of something in its workplace that is no folder and no regular file; None if there is none.

        No worker makes such things. The supervisor and generations read and write there with more rights than a worker
        has, and a link would lead them elsewhere.
        """
        return await self._disk(_odd_file, self.workplace(update))

    async def keep_resource_trace(self, update: Update, trace: ResourceTrace) -> None:
        """Write the resource trace of the worker into the staging folder of its update."""
        await self._disk(keep_resource_trace, self.staged(update), trace)

    async def discard_claim(self, update: Update) -> None:
        """Remove the claimed file of an update, unless another open update needs it."""
        await self._disk(self._discard_claim, update)

    def _discard_claim(self, update: Update) -> None:
        journal = self._folder.journal
        with journal.exclusive():  # no update that needs the same file is journaled between the check and the removal
            if not journal.shares_claim(update):
                discard(self.claimed(update))

    async def claim_again(self, ended: Update, key: str) -> Update | None:
        """Claim the kept file of an ended update for a new one, and journal that.

        The file stays where it is kept if it was rejected. After a crash in between, the ended update can be retried.

        Args:
            ended: Update in one of the states RETRIABLE.
            key: Idempotency key of the file with the configuration in force.

        Returns:
            The new update, in CLAIMED; None if the file is not kept any more.

        Raises:
            StateError: The disk is full, or the state folder cannot be written.
        """
        return await self._disk(self._claim_again, ended, key)

    def _claim_again(self, ended: Update, key: str) -> Update | None:
        folder, journal = self._folder, self._folder.journal
        with journal.exclusive():
            file = folder.kept_file(ended)
            if file is None:
                return None
            claimed = folder.claimed_file(ended)
            if file != claimed:
                link(file, claimed.parent)
            signature = None if ended.signature is None else ended.signature.envelope
            write_origin(claimed.parent, Origin(ended.model, Path(ended.file_name).name, signature))
            update = journal.retry(ended, key)
        discard(folder.paths.superseded / claimed.parent.name / CLAIMED_NAME)
        return update

    async def recover(self) -> None:
        """Finish what a crash interrupted: give open updates their files back, and keep those of ended ones."""
        try:
            await self._disk(self._recover)
        except (OSError, StateError) as error:
            log.error("cannot put the claimed files in order: %s; free space in the state folder", error)

    def _recover(self) -> None:
        folder = self._folder
        open_updates = [update for update in folder.journal.open_updates() if update.sha256 is not None]
        for update in open_updates:
            kept = folder.kept_file(update)
            if kept is not None and not self.claimed(update).exists():
                link(kept, self.claimed(update).parent)
        needed = {update.sha256 for update in open_updates}
        for path in folder.paths.claimed.iterdir():
            ended = None if path.name in needed else folder.journal.last_of_file(path.name)
            if ended is not None and is_end(ended.state):  # without one, see service.intake.orphans
                if ended.state in RETRIABLE and folder.kept_file(ended) == self.claimed(ended):
                    reason = _reason(ended, ended.state, ended.code, ended.reason)
                    keep(self.claimed(ended), self.kept(ended, ended.state), reason)
                discard(self.claimed(ended))

    def kept(self, update: Update, state: State) -> Path:
        """Return the folder that keeps the file of an update once it has ended in `state`."""
        return self._folder.kept(state, update.sha256 or "none")

    async def quarantine(self, update: Update, state: State, failure: Failure) -> None:
        """Keep the claimed file of an update that will not be served, with the reason and the evidence.

        It is kept in superseded/ if the update was superseded or cancelled, otherwise in rejected/; see `kept`. The
        claimed file stays until `discard_claim`. An update that was not claimed has no file to keep.

        Args:
            update: Update whose file will not be served.
            state: Final state of the update.
            failure: Why it will not be served.
        """
        if update.sha256 is not None:
            target = self.kept(update, state)
            await self._disk(keep, self.claimed(update), target, _reason(update, state, failure.code, failure.reason))
            await self._disk(keep_evidence, self.staged(update), target)
        await self.clear_staging(update)


def _odd_file(folder: Path) -> str | None:
    """Return the relative path of something that is no folder, and no regular file with a single name."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            status = os.lstat(Path(parent, name))
            if not stat.S_ISDIR(status.st_mode) and (not stat.S_ISREG(status.st_mode) or status.st_nlink > 1):
                return str(Path(parent, name).relative_to(folder))
    return None


def _reason(update: Update, state: State, code: str | None, reason: str | None) -> dict[str, Any]:
    """Return the contents of reason.json."""
    return {
        "update": update.id,
        "model": update.model,
        "file_name": update.file_name,
        "file_bytes": update.file_bytes,
        "sha256": update.sha256,
        "result": state.value.lower(),
        "code": code,
        "reason": reason,
        "at": iso_time(time.time()),
    }
