"""A rollback: an earlier generation, by default the previous one, takes the place of the current one again."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from edged.errors import NotReadyError, PinnedError, UsageError
from service.config.current import CurrentConfig
from service.journal.states import State
from service.journal.update import Update
from service.outcomes import Failure, RolledBack
from service.rollout.records import UpdateRecords
from service.rollout.swap import Swap, SwapOptions, Swapper

log = logging.getLogger(__name__)


class Rollbacks:
    """Takes generations out of service again.

    Args:
        swapper: Changes which generation is in service.
        records: Records of the update whose generation is taken out of service.
        config: Configuration in force.
    """

    def __init__(self, swapper: Swapper, records: UpdateRecords, config: CurrentConfig) -> None:
        self._swapper = swapper
        self._records = records
        self._config = config

    def target(self, model: str) -> int | None:
        """Return the generation that a rollback would put in service; None if there is none on the disk."""
        return self._swapper.generations.rollback_target(model)

    async def roll_back(
        self,
        model: str,
        *,
        to: int | None = None,
        code: str = "rollback",
        why: str = "on request",
        expected: int | None = None,
    ) -> dict[str, Any]:
        """Make another generation current and route to it.

        The current generation becomes the previous one, so that a second rollback undoes the first.

        Args:
            model: Model name.
            to: Generation to put in service; None for the previous one.
            code: Reason for the journal and the metrics.
            why: Reason for people.
            expected: Generation to roll back from; None for the current one.

        Returns:
            {"model", "from", "to"}: generation numbers.

        Raises:
            UsageError: There is no such model, or no generation `to` on the disk.
            NotReadyError: There is no previous generation on the disk, `expected` is not the current one any more, or
                `to` is the current one already.
            PinnedError: The model is pinned.
            ArtifactError: Generation `to` is not whole; the current one serves on.
            EdgedError: The other generation cannot be started; the current one serves on.
        """
        server = self._swapper.server(model)
        async with server.switching:
            self._swapper.server(model)  # raises if a reload has removed the model meanwhile
            current, target = self._ends(model, expected, to)
            if to is not None:
                await self._swapper.generations.require_whole(model, to)
            configured = self._config.model(model)
            options = SwapOptions("auto" if configured is None else configured.swap)
            undone = await self._records.updates.brought_live(model, current)
            async with await self._swapper.prepare(server, target, options) as swap:
                log.warning("model %s: rolling back from generation %d to %d: %s", model, current, target, why)
                await swap.commit()
                if undone is not None:
                    await self._journal(undone, swap, code, f"rolled back to generation {target}: {why}")
                await swap.retire_previous()
            if undone is not None:
                await self._records.reports.write(undone.id)
        return {"model": model, "from": current, "to": target}

    async def _journal(self, undone: Update, swap: Swap, code: str, reason: str) -> None:
        """Record that the generation of an update was taken out of service."""
        report = dataclasses.replace(undone.report, rollback=swap.record)
        updates = self._records.updates
        await updates.advance(undone.id, State.ROLLED_BACK, code=code, reason=reason, report=report)
        self._records.metrics.count_update(undone.model, State.ROLLED_BACK.value.lower(), code)

    def _ends(self, model: str, expected: int | None, to: int | None) -> tuple[int, int]:
        """Return the current generation and the one to roll back to, or raise why there is no way back."""
        if self._swapper.holds.of(model).pinned:
            raise PinnedError(self._swapper.holds.pinned_reason(model))
        generations = self._swapper.generations
        current, target = generations.current(model), self.target(model) if to is None else to
        if to is not None and not generations.exists(model, to):
            kept = ", ".join(map(str, generations.numbers(model))) or "none"
            raise UsageError(f"model {model!r} has no generation {to}; kept on the disk: {kept}")
        if current is not None and current == to:
            raise NotReadyError(f"model {model!r} is at generation {to} already")
        if expected is not None and current != expected:
            raise NotReadyError(f"model {model!r} is at generation {current} already, not at {expected}")
        if current is None or target is None:
            at = "none" if current is None else current
            raise NotReadyError(f"model {model!r} has no generation to go back to; current: {at}")
        return current, target

    async def undone(self, update_id: int) -> RolledBack | None:
        """Return how the generation of an update was taken out of service; None if it was not.

        A rollback that a stop of the daemon kept from being journaled is journaled now.
        """
        updates = self._records.updates
        update = await updates.get(update_id)
        current = self._swapper.generations.current(update.model)
        if update.state is State.LIVE and current != update.generation:
            reason = f"rolled back to generation {current}"
            update = await updates.advance(update.id, State.ROLLED_BACK, code="rollback", reason=reason)
        if update.state is not State.ROLLED_BACK:
            return None
        return RolledBack(Failure(update.code or "rollback", update.reason or "rolled back", permanent=True))
