"""A rollback: an earlier generation, by default the previous one, takes the place of the current one again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edged.errors import GateError, NotReadyError, PinnedError, UsageError
from service.config.current import CurrentConfig
from service.config.load import DetectionConfig, ModelConfig
from service.journal.states import State
from service.journal.update import Update
from service.outcomes import Failure, RolledBack
from service.rollout.gates import interface_on_disk
from service.rollout.records import UpdateRecords
from service.rollout.swap import Swap, SwapOptions, Swapper
from service.worker.interface import Interface

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Misfit:
    """A reason why a generation may not be the one that is wanted now.

    Attributes:
        text: What does not fit, in one line.
        of_interface: Whether clients would notice it.
    """

    text: str
    of_interface: bool = False


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
            {"model", "from", "to"}: generation numbers; "warnings" with texts if the generation does not fit the
            configuration, or has another interface.

        Raises:
            GateError: The clients would notice another interface, and neither `to` nor the configuration says that it
                may change.
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
            warnings = [] if configured is None else await self._misfits(configured, current, target)
            if code == "rollback" and to is None:
                _refuse_another_interface(warnings, model, target)
            options = SwapOptions("auto" if configured is None else configured.swap)
            undone = await self._records.updates.brought_live(model, current)
            async with await self._swapper.prepare(server, target, options) as swap:
                log.warning("model %s: rolling back from generation %d to %d: %s", model, current, target, why)
                await swap.commit()
                if undone is not None:
                    await self._journal(undone, swap, code, f"rolled back to generation {target}: {why}")
                await self.reconcile(model)
                await swap.retire_previous()
            if undone is not None:
                await self._records.reports.write(undone.id)
        for warning in warnings:
            log.warning("model %s: %s", model, warning.text)
        texts = {"warnings": [warning.text for warning in warnings]} if warnings else {}
        return {"model": model, "from": current, "to": target, **texts}

    async def _misfits(self, model: ModelConfig, current: int, target: int) -> list[Misfit]:
        """Return what clients would notice of a rollback, and what the configuration says otherwise."""
        generations = self._swapper.generations
        live, other = [await interface_on_disk(generations, model.name, number) for number in (current, target)]
        if other is None:
            return []
        found = [Misfit(f"generation {target} {text}") for text in _against_config(other, model)]
        if live is None or not model.gates.same_interface:
            return found
        owner = f"generation {current} in service"
        if (difference := other.difference(live, owner) or other.renaming(live, owner)) is not None:
            found.insert(0, Misfit(f"generation {target} {difference}", of_interface=True))
        return found

    async def reconcile(self, model: str) -> None:
        """Journal that the generation in service is in service, if an earlier rollback had taken it out.

        The links say so if the daemon died before a rollback was journaled: after an update, the previous generation
        has the older update.
        """
        generations, updates = self._swapper.generations, self._records.updates
        current, previous = generations.current(model), generations.previous(model)
        for update in [] if current is None else await updates.taken_out(model, current):
            log.info(
                "update %d of %s (%s): generation %s is in service again", update.id, model, update.file_name, current
            )
            await updates.advance(update.id, State.COMMITTED)
            await self._records.reports.write(update.id)
        if current is None or previous is None:
            return
        serving, undone = await updates.brought_live(model, current), await updates.brought_live(model, previous)
        if serving and undone and undone.state is State.COMMITTED and undone.id > serving.id:
            reason = f"rolled back to generation {current}; the daemon died before that was journaled"
            log.warning("update %d of %s (%s): %s", undone.id, model, undone.file_name, reason)
            await updates.advance(undone.id, State.ROLLED_BACK, code="rollback", reason=reason)
            self._records.metrics.count_update(model, State.ROLLED_BACK.value.lower(), "rollback")
            await self._records.reports.write(undone.id)

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


def _refuse_another_interface(misfits: Sequence[Misfit], model: str, target: int) -> None:
    """Raise an error for the first difference that clients would notice."""
    for misfit in misfits:
        if misfit.of_interface:
            raise GateError(
                f"{misfit.text}; clients rely on it: go back all the same with `edged rollback {model} --to {target}`,"
                " or set gates.same_interface: false"
            )


def _against_config(interface: Interface, model: ModelConfig) -> Iterator[str]:
    """Yield what the configuration of a model says otherwise than a generation is."""
    generic = model.arch == "yolov5" and interface.task == "detection"
    if model.arch not in (None, interface.architecture) and not generic:
        yield f"is a {interface.architecture}, arch is {model.arch}"
    if interface.task == "classification" and model.detection != DetectionConfig():
        yield f"is a classifier ({interface.architecture}), the section detection is for detectors"
    if model.input.size not in (None, interface.size):
        yield f"reads images of {interface.size} pixels, input.size is {model.input.size}"
