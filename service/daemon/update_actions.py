"""The actions of an operator on one update: retry and cancel. Each one is an HTTP route and a command."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from edged.errors import NotReadyError, UsageError
from service.config.current import CurrentConfig
from service.daemon.model_registry import ModelRegistry
from service.journal.states import RETRIABLE, State, is_end
from service.journal.update import Update
from service.rollout.records import UpdateRecords
from service.updates.files import UpdateFiles
from service.updates.runner import UpdateRunner

log = logging.getLogger(__name__)

UpdateAction = Callable[[int], Awaitable[dict[str, Any]]]


class UpdateActions:
    """Takes the file of an ended update again, and ends updates that have not gone live.

    Args:
        config: Configuration in force.
        models: Configured models with the queues of their updates.
        runner: Drives the updates.
        records: Journal of the updates.
        files: Holds the files that were kept.

    Attributes:
        actions: Every action by its name in routes and commands. An action takes the number of an update, and returns
            JSON types.
    """

    def __init__(
        self,
        config: CurrentConfig,
        models: ModelRegistry,
        runner: UpdateRunner,
        records: UpdateRecords,
        files: UpdateFiles,
    ) -> None:
        self._config = config
        self._models = models
        self._runner = runner
        self._updates = records.updates
        self._files = files
        self.actions: Mapping[str, UpdateAction] = {"retry": self.retry, "cancel": self.cancel}

    async def retry(self, update_id: int) -> dict[str, Any]:
        """Take the file of an ended update again, as a new update; a deferred update is tried again now.

        Returns:
            {"update", "model", "file_name", "state", "retry_of"} of the update that goes on; "retry_of" is the number
            of the ended update, None if it was deferred.

        Raises:
            UsageError: There is no such update, or its model is not configured.
            NotReadyError: It is under way, was committed, or its file is not kept any more.
            StateError: The state folder cannot be written.
        """
        ended = await self._updates.get(update_id)
        model = self._config.model(ended.model)
        if model is None:
            raise UsageError(f"model {ended.model!r} of update {update_id} is not configured; add it to the config")
        if ended.state is State.DEFERRED:
            self._models.queues[ended.model].recheck()
            log.warning("update %d of %s (%s) is tried again now, on request", ended.id, ended.model, ended.file_name)
            return {**_answer(ended), "retry_of": None}
        if ended.state not in RETRIABLE:
            hint = "it was served" if ended.state is State.COMMITTED else "it has not ended"
            raise NotReadyError(f"update {update_id} is {ended.state.value}: {hint}, so there is nothing to retry")
        update = None
        if ended.sha256 is not None:
            update = await self._files.claim_again(ended, model.key(ended.sha256))
        if update is None:
            undo = (
                f", and retry the update that is then rejected because of the rollback; or undo the rollback with"
                f" `edged rollback {ended.model}`"
            )
            hint = undo if ended.state is State.ROLLED_BACK else ""
            raise NotReadyError(
                f"the file of update {update_id} is not kept any more; drop {ended.file_name} again{hint}"
            )
        self._updates.note_retry(update)
        log.warning(
            "update %d of %s (%s) takes the file of update %d again",
            update.id,
            update.model,
            update.file_name,
            ended.id,
        )
        self._models.offer(update)
        return {**_answer(update), "retry_of": ended.id}

    async def cancel(self, update_id: int) -> dict[str, Any]:
        """End an update that waits or is being worked on; its worker is stopped and its file is kept.

        Returns:
            {"update", "model", "file_name", "state", "kept"}; "kept" is the path of the file.

        Raises:
            UsageError: There is no such update.
            NotReadyError: It has ended, is going live, or waits in the drop folder.
            StateError: The state folder cannot be written.
        """
        update = await self._updates.get(update_id)
        if is_end(update.state):
            raise NotReadyError(f"update {update_id} has ended: it is {update.state.value}")
        if update.sha256 is None:
            raise NotReadyError(
                f"update {update_id} waits in the drop folder; take {update.file_name} out of it, or let it be claimed"
            )
        queue = self._models.queues.get(update.model)
        if queue is None:  # its model was taken out of the config, so nothing works on it
            await self._runner.cancel(update)
        else:
            if update.state is State.CLAIMED:
                await queue.await_offer(update_id)
            if not await queue.cancel(update_id):
                await self._cancel_active(update)
        update = await self._updates.get(update_id)
        if update.state is not State.CANCELLED:
            hint = f"`edged rollback {update.model}` undoes it once it is live"
            raise NotReadyError(f"update {update_id} is {update.state.value}: it is too late to cancel it; {hint}")
        return {**_answer(update), "kept": str(self._files.kept(update, update.state))}

    async def _cancel_active(self, update: Update) -> None:
        queue = self._models.queues[update.model]
        if queue.active is not None and queue.active.id == update.id:
            await self._runner.cancellations.request(update.id)


def _answer(update: Update) -> dict[str, Any]:
    return {
        "update": update.id,
        "model": update.model,
        "file_name": update.file_name,
        "state": update.state.value,
    }
