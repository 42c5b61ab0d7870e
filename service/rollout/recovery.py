"""The way back to a good generation: what is damaged is quarantined, and the newest whole generation serves.

    start of the daemon     `current` leads to no generation        entry
    failed start            the generation is damaged or unusable   replacement
    check at idle times     the files on the disk are damaged       note_scrubbed

The files of a generation are read when its process starts, which checks their digests. So nothing is read twice as long
as nothing is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from edged.errors import EdgedError, GateError
from service.journal.states import State
from service.journal.update import Update
from service.rollout.records import UpdateRecords
from service.rollout.rollback import Rollbacks
from service.rollout.swap import Swapper
from service.serving.generation import UnusableError
from service.serving.limits import NothingWholeError
from service.units import iso_time

log = logging.getLogger(__name__)

DAMAGED, UNUSABLE = "damaged", "unusable"  # codes of updates whose generation was taken out of service by itself
_SHOWN_DIGITS = 12  # of a digest, in a message

# Updates of a generation in the order in which generations are chosen; those that no update is known of are second.
_UNKNOWN_RANK = 1
_LAST_RANK = 3


class Checkpoints(Protocol):
    """The files that generations were made from."""

    async def is_kept(self, update: Update) -> bool:
        """Return whether the file of an update is still there."""

    async def make_again(self, update: Update) -> None:
        """Begin an update that takes the kept file of an earlier one again; nothing happens if it is not kept."""


class Recovery:
    """Finds a generation to serve where the current one cannot be.

    Args:
        swapper: Knows the servers and the published generations.
        rollbacks: Journals that a generation is in service again.
        records: Journal, metrics and reports.
        checkpoints: Makes a damaged generation again where the file that it was made from is kept.
        state_problem: Returns why nothing can be kept in the state folder now; None if it can. May block.

    Attributes:
        damaged: Records of the damaged generations, by model and number.
        generations: Published generations.
    """

    def __init__(
        self,
        swapper: Swapper,
        rollbacks: Rollbacks,
        records: UpdateRecords,
        checkpoints: Checkpoints,
        state_problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.damaged: dict[str, dict[int, dict[str, Any]]] = {}
        self._checkpoints = checkpoints
        self._state_problem = state_problem
        self._swapper = swapper
        self.generations = swapper.generations
        self._rollbacks = rollbacks
        self._records = records
        self._unfit: dict[str, set[int]] = {}  # generations that failed to start since the daemon did

    async def entry(self, model: str) -> int | None:
        """Return the generation of a model to serve from now on; None if there is none.

        A `current` that leads nowhere is pointed at the newest whole generation first. An error is only logged: it must
        not keep the daemon and other models from starting.
        """
        try:
            self.damaged[model] = await self.generations.quarantined(model)
            problem = await self.generations.link_problem(model)
            current = self.generations.current(model)
            if problem is not None:
                return await self._fall_back(model, current, problem, DAMAGED)
            await self._finish(model, current)
            return current
        except NothingWholeError as error:
            self._swapper.server(model).lose(str(error))
        except (EdgedError, OSError) as error:
            log.error("model %s: its generations cannot be read: %s", model, error)
            self._swapper.server(model).lose(f"cannot read its generations: {error}")
        finally:
            self._show(model)
        return None

    async def replacement(self, model: str, number: int, error: EdgedError) -> int | None:
        """Return the generation to start in place of one that failed to start; None to try the same one again.

        Only damage leads to another one, and what a retry cannot change: an artifact that is not readable, or outputs
        that are not those that were evaluated.

        Raises:
            NothingWholeError: The generation is damaged, and no other one is whole.
        """
        server = self._swapper.servers.get(model)
        if server is None or await asyncio.to_thread(self._state_problem) is not None:
            return None  # where the state folder is gone, its files are not damaged
        async with server.switching:
            current, unfit = self.generations.current(model), self._unfit.setdefault(model, set())
            if current is not None and current != number and current not in unfit:
                return current
            try:
                damage = await self.generations.damage(model, number, derived=isinstance(error, UnusableError))
            except (EdgedError, OSError) as unreadable:
                log.warning("model %s generation %d: cannot be checked: %s", model, number, unreadable)
                return None
            if damage is None and not isinstance(error, (GateError, UnusableError)):
                return None
            unfit.add(number)
            try:
                return await self._fall_back(
                    model, number, damage or str(error), UNUSABLE if damage is None else DAMAGED
                )
            except NothingWholeError:
                if damage is not None:
                    raise
                unfit.discard(number)  # it may fit again, for example once an engine was updated
                return None
            finally:
                self._show(model)

    async def note_scrubbed(self, model: str, number: int, damage: str | None) -> None:
        """Report what a check of a generation on the disk has found before it was needed.

        The previous generation is quarantined: a rollback to it would fail. The one in service goes on from memory.

        Args:
            model: Model name.
            number: The generation in service, or the previous one.
            damage: What is damaged; None if it is whole.
        """
        if damage is None:
            if self.damaged.get(model, {}).get(number, {}).get("in_service"):
                del self.damaged[model][number]
                self._show(model)
            return
        server = self._swapper.servers.get(model)
        if server is None or await asyncio.to_thread(self._state_problem) is not None:
            return
        async with server.switching:
            if number not in self.generations.numbers(model):
                return  # it was removed meanwhile
            if number == self.generations.current(model):
                record = await self._record(model, number, damage, None)
                self.damaged.setdefault(model, {})[number] = {**record, "in_service": True}
                log.error(
                    "model %s: generation %d is damaged on the disk, and goes on serving from memory: %s; %s",
                    *(model, number, damage, record["remedy"]),
                )
                await self._note(model, number, {"damage": damage})
            else:
                await self._quarantine(model, number, damage, None)
        self._show(model)

    def problem(self, model: str, live: int) -> str | None:
        """Return what is damaged that matters to the generation in service, for a person; None if nothing is."""
        records = self.damaged.get(model, {})
        for number, record in sorted(records.items(), reverse=True):
            if number == live and record.get("in_service"):
                return f"serves generation {number} from memory, which is damaged on the disk: {record.get('reason')}"
            if record.get("replaced_by") == live:
                return (
                    f"serves generation {live}, because generation {number} is damaged: {record.get('reason')};"
                    f" {record.get('remedy')}"
                )
        return None

    async def refresh(self) -> None:
        """Read again what is in quarantine, after some of it was deleted."""
        for model in list(self.damaged):
            in_service = {number: record for number, record in self.damaged[model].items() if record.get("in_service")}
            self.damaged[model] = {**await self.generations.quarantined(model), **in_service}
            self._show(model)

    async def _fall_back(self, model: str, number: int | None, why: str, code: str) -> int:
        """Make the newest whole generation current, quarantine what is damaged, and journal both.

        Raises:
            NothingWholeError: There is none.
        """
        chosen = await self._newest_whole(model, number)
        update = None if number is None else await self._of_generation(model, number)
        if number is not None and code == DAMAGED:
            await self._quarantine(model, number, why, chosen, in_service=True)
        if chosen is None:
            reason = f"has no whole generation: {why}; {await self._remedy(update, in_service=True)}"
            log.error("model %s %s", model, reason)
        else:
            reason = f"generation {chosen} serves again: {why}"
            log.error("model %s: generation %d is put in service, the newest that is whole: %s", model, chosen, why)
            await self._attempted("the link `current` is not written", self.generations.restore(model, chosen))
            self._records.metrics.last_recovery.labels(model).set_to_current_time()
        if update is not None:
            await self._attempted("its update is not journaled", self._journal(update, code, reason))
        if chosen is not None:
            await self._attempted("its update is not journaled", self._rollbacks.reconcile(model))
            await self._note(model, chosen, {"recovered": f"put in service again: {why}"})
        if update is not None and code == DAMAGED:
            await self._make_again(update)
        if chosen is None:
            raise NothingWholeError(reason)
        return chosen

    async def _finish(self, model: str, current: int | None) -> None:
        """Journal that damaged generations were taken out of service, if the daemon died before that was journaled."""
        for number, record in self.damaged[model].items():
            if record.get("replaced_by") is None or number == current:
                continue
            update = await self._of_generation(model, number)
            if update is None or update.state not in (State.LIVE, State.COMMITTED):
                continue
            reason = f"generation {current} serves again: {record.get('reason')}"
            log.warning("update %d of %s (%s): %s", update.id, model, update.file_name, reason)
            await self._attempted("its update is not journaled", self._journal(update, DAMAGED, reason))
            await self._make_again(update)

    async def _make_again(self, update: Update) -> None:
        again = self._checkpoints.make_again(update)
        await self._attempted(f"{update.file_name} cannot be quantized again", again)

    async def _newest_whole(self, model: str, besides: int | None) -> int | None:
        """Return the generation that is to serve; what is found damaged before it is quarantined."""
        for number in await self._candidates(model):
            if number == besides or number in self._unfit.get(model, ()):
                continue
            damage = await self.generations.damage(model, number)
            if damage is None:
                return number
            await self._quarantine(model, number, damage, None)
        return None

    async def _candidates(self, model: str) -> list[int]:
        """Return the generations that may serve, the best first: those that were committed, the newest first.

        Generations that were taken out of service come last. Those that never were in service are left out, because
        they have not passed the gates.
        """
        numbers = self.generations.numbers(model)
        try:
            updates, _ = await self._records.updates.history(model)
        except EdgedError as error:
            log.warning(
                "model %s: the journal cannot be read, so the newest whole generation is taken: %s", model, error
            )
            updates = []
        ranks = {number: _rank([update for update in updates if update.generation == number]) for number in numbers}
        return sorted((number for number, rank in ranks.items() if rank is not None), key=lambda n: (ranks[n], -n))

    async def _quarantine(
        self, model: str, number: int, damage: str, replaced_by: int | None, *, in_service: bool = False
    ) -> None:
        """Move a damaged generation aside, with a record of why and of how it can be made again."""
        record = await self._record(model, number, damage, replaced_by, in_service=in_service)
        self.damaged.setdefault(model, {})[number] = record
        log.error("model %s: generation %d is damaged and quarantined: %s; %s", model, number, damage, record["remedy"])
        await self._attempted("it stays where it is", self.generations.quarantine(model, number, record))
        if replaced_by is None:
            await self._note(model, number, {"damage": damage})

    async def _record(
        self, model: str, number: int, damage: str, replaced_by: int | None, *, in_service: bool = False
    ) -> dict[str, Any]:
        """Return what damage.json says."""
        update = await self._of_generation(model, number)
        return {
            "generation": number,
            "reason": damage,
            "at": iso_time(time.time()),
            "replaced_by": replaced_by,
            "file_name": None if update is None else update.file_name,
            "sha256": None if update is None else update.sha256,
            "remedy": await self._remedy(update, in_service=in_service),
        }

    async def _remedy(self, update: Update | None, *, in_service: bool) -> str:
        """Return what makes the generation of an update again; by itself only if it was the one in service."""
        if update is None:
            return "drop its checkpoint again"
        if in_service and await self._checkpoints.is_kept(update):
            return f"it is made again from {update.file_name}, which is kept"
        digest = "" if update.sha256 is None else f" (sha256 {update.sha256[:_SHOWN_DIGITS]}...)"
        return f"drop {update.file_name}{digest} again to have it made again"

    async def _of_generation(self, model: str, number: int) -> Update | None:
        """Return the newest update of a generation; None if there is none, or the journal cannot be read."""
        try:
            updates, _ = await self._records.updates.history(model)
        except EdgedError:
            return None
        return next((update for update in updates if update.generation == number), None)

    async def _note(self, model: str, number: int, detail: dict[str, Any]) -> None:
        update = await self._of_generation(model, number)
        if update is not None:
            note = self._records.updates.note(update.id, detail)
            await self._attempted("its update does not say so", note)

    async def _journal(self, update: Update, code: str, reason: str) -> None:
        """Journal that the generation of an update was taken out of service."""
        if update.state not in (State.LIVE, State.COMMITTED):
            return
        await self._records.updates.advance(update.id, State.ROLLED_BACK, code=code, reason=reason)
        self._records.metrics.count_update(update.model, "rolled_back", code)
        await self._records.reports.write(update.id)

    async def _attempted(self, otherwise: str, work: Awaitable[Any]) -> None:
        """Await work without which the model can be served, too; an error is only logged."""
        try:
            await work
        except (EdgedError, OSError) as error:
            log.error("%s: %s", otherwise, error)

    def _show(self, model: str) -> None:
        self._records.metrics.damaged_generations.labels(model).set(len(self.damaged.get(model, {})))


def _rank(updates: Sequence[Update]) -> int | None:
    """Return the place of a generation among those that may serve, 0 for the first; None if it must not.

    Args:
        updates: Updates of the generation, the newest first.
    """
    if not updates:
        return _UNKNOWN_RANK
    in_service: Mapping[State, int] = {State.COMMITTED: 0, State.LIVE: 0, State.ROLLED_BACK: 2}
    for update in updates:
        if update.state in in_service:
            return (
                _LAST_RANK
                if update.code == "probation" and update.state is State.ROLLED_BACK
                else in_service[update.state]
            )
    return None
