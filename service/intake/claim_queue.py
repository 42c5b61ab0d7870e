"""Turns finished files of the drop folder into journaled updates."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.errors import CheckpointError, EdgedError, RejectedError, StateError
from edged.signing.keys import shown
from edged.signing.verification import signature_of
from service.config.current import CurrentConfig
from service.config.load import ModelConfig
from service.intake.claim import (
    ChecksumError,
    GoneError,
    MissingChecksumError,
    NotSettledError,
    claim,
    remove,
)
from service.intake.drop_folder import Refusal, fingerprint_of, sidecar_of
from service.intake.run_folder import note_taken
from service.intake.stability import Fingerprint
from service.intake.watcher import Drop
from service.journal.holds import Holds
from service.journal.states import State
from service.journal.update import Update
from service.rollout.records import UpdateRecords
from service.storage.claim_origin import Origin
from service.system.liveness import Liveness, Loop
from service.trust.signatures import CODES, Signatures, Signed

log = logging.getLogger(__name__)

_SLOWEST_COPY = 1 << 20  # bytes a second; the drop folder may be a network share on a slow line
_LOOK = "stat"  # key of a `_Look` in the detail of an event
_REMEMBERED = 200  # refusals that are not journaled a second time


@dataclass(frozen=True)
class Parked:
    """A file that stays in the drop folder because its model is paused or pinned.

    Attributes:
        drop: File as it was found.
        update: Update of the file, in the state DROPPED.
    """

    drop: Drop
    update: Update


@dataclass(frozen=True)
class ClaimListener:
    """Receivers of what becomes of a file.

    Attributes:
        claimed: Receives every claimed update.
        not_settled: Receives every file that turned out not to be finished.
        given_back: Receives every file that cannot be taken or refused now, because the disk is full, for example,
            and why; it is to be found again.
        truncated: Receives every claimed update whose file is known to be cut off, and how.
    """

    claimed: Callable[[Update], None]
    not_settled: Callable[[Drop], None]
    given_back: Callable[[Drop | Refusal, str], None]
    truncated: Callable[[Update, str], Awaitable[None]]


@dataclass(frozen=True)
class _Look:
    """What stat(2) says of a file in the drop folder, by which it is known again.

    Attributes:
        file: The file.
        checksum: Its `.sha256`; None if there is none.
        signature: Its `.sig`; None if there is none.
    """

    file: Fingerprint
    checksum: Fingerprint | None
    signature: Fingerprint | None

    def to_dict(self) -> dict[str, str | None]:
        """Return JSON types."""
        return {name: None if value is None else str(value) for name, value in vars(self).items()}


class ClaimQueue:
    """Claims files, one after another.

    A file whose intake fails by anything but its own fault is given back, to be found again: it stays in the drop
    folder until it is claimed. Why is logged, listed while it waits, and journaled once the journal can be written.

    Args:
        config: Configuration in force.
        claimed: Folder that claimed files are copied to.
        records: Journal and metrics of the updates.
        holds: Pinned and paused models, whose files stay in the drop folder.
        listener: Receivers of what becomes of a file.
        liveness: Registers the loop that claims the files.
        state_problem: Returns why nothing can be kept in the state folder now; None if it can. May block.
    """

    def __init__(
        self,
        config: CurrentConfig,
        claimed: Path,
        records: UpdateRecords,
        holds: Holds,
        listener: ClaimListener,
        liveness: Liveness,
        state_problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._config = config
        self._claimed = claimed
        self._updates = records.updates
        self._metrics = records.metrics
        self._holds = holds
        self._signatures = Signatures(holds)
        self._listener = listener
        self._liveness = liveness
        self._state_problem = state_problem
        self._queue: asyncio.Queue[Drop | Refusal] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._parked: dict[Path, Parked] = {}
        self._given_back: dict[Path, dict[str, Any]] = {}  # code and reason that are not journaled yet

    def parked(self, model: str) -> int:
        """Return the number of files of a model that wait in the drop folder for an operator."""
        return sum(parked.drop.model == model for parked in self._parked.values())

    async def release(self, model: str) -> None:
        """Have the parked files of a model found again, now that its hold has been lifted."""
        for parked in [parked for parked in self._parked.values() if parked.drop.model == model]:
            del self._parked[parked.drop.path]
            try:
                if await asyncio.to_thread(os.path.lexists, parked.drop.path):
                    self._listener.not_settled(parked.drop)
                else:
                    reason = f"{parked.drop.path.name} was taken out of the drop folder while it waited"
                    await self._journal_end(parked.update, State.FAILED, GoneError.code, reason)
            except EdgedError as error:  # the others are released nevertheless
                log.error("update %d of %s (%s): %s", parked.update.id, model, parked.update.file_name, error)
        self._count_parked(model)

    def put(self, found: Drop | Refusal) -> None:
        """Queue what the watcher has found."""
        self._queue.put_nowait(found)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; files that are still in the drop folder are found after the next start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        with self._liveness.loop("intake") as loop:
            while True:
                await self._next(loop)

    async def _next(self, loop: Loop) -> None:
        loop.expect_within(None)
        found = await self._queue.get()
        loop.expect_within(found.size / _SLOWEST_COPY)
        try:
            await asyncio.to_thread(self._require_state_folder)
            if isinstance(found, Drop):
                await self._take(found)
            else:
                await self._refuse(found)
        except (EdgedError, OSError) as error:  # the journal cannot be written, for example
            log.error("cannot take %s: %s; it stays in the drop folder and is tried again", found.path.name, error)
            code = error.code if isinstance(error, EdgedError) else StateError.code
            self._give_back(found, code, str(error))
        except Exception as error:  # a bug in this program must not end the intake
            log.exception("cannot take %s; it stays in the drop folder and is tried again", found.path.name)
            self._give_back(found, "internal", f"unexpected {type(error).__name__}; see the log")

    def _require_state_folder(self) -> None:
        """Check that what is claimed is not taken into nothing.

        Raises:
            StateError: The state folder is gone, or another one is in its place.
        """
        if (problem := self._state_problem()) is not None:
            raise StateError(problem)

    async def _take(self, drop: Drop) -> None:
        model = self._config.model(drop.model)
        if model is None:
            return
        if (hold := self._holds.why(drop.model)) is not None:
            await self._park(drop, *hold)
            return
        look = await asyncio.to_thread(_look_at, drop.path)
        if look is not None:
            if await self._was_rejected(drop, look, model):
                return
            if (taken := await self._taken_as(drop, look)) is not None:
                await self._remove_taken(drop, look, taken)
                return
        update = await self._create(drop.model, drop.name, drop.size, drop.seen)
        await self._journal_wait(drop.path, update)
        stages = {"settle": time.monotonic() - drop.seen}
        self._metrics.stage_duration.labels(drop.model, "settle").observe(stages["settle"])
        await self._updates.advance(update.id, State.SETTLED, stages=stages)
        try:
            update, problem = await self._claim(drop, model, update, stages, look)
        except NotSettledError as error:
            log.info("update %d of %s (%s): %s", update.id, drop.model, update.file_name, error)
            self._listener.not_settled(drop)
        except EdgedError as error:
            await self._cannot_claim(drop, update, error, look)
        else:
            log.info("update %d of %s claimed: %s, %d bytes", update.id, drop.model, update.file_name, drop.size)
            if problem is not None:
                self._keep_removing(drop, update, problem)
            await self._hand_on(update, drop.truncated)

    async def _hand_on(self, update: Update, truncated: str | None) -> None:
        """Hand a claimed update on. Its file has left the drop folder: from here on, the update must not be lost."""
        if truncated is not None:
            try:
                await self._listener.truncated(update, truncated)
            except (EdgedError, OSError) as error:  # its worker finds the same fault once it can be journaled
                text = "update %d of %s (%s) cannot be ended now, and waits: %s"
                log.error(text, update.id, update.model, update.file_name, error)
            else:
                return
        self._listener.claimed(update)

    def _give_back(self, found: Drop | Refusal, code: str, reason: str) -> None:
        """Have a file that cannot be taken or refused now found again later."""
        self._given_back[found.path] = {"code": code, "reason": reason}
        self._listener.given_back(found, reason)

    async def _journal_wait(self, path: Path, update: Update) -> None:
        """Keep in the history why a file was given back before; that could perhaps not be journaled then."""
        if (detail := self._given_back.get(path)) is not None:
            await self._updates.note(update.id, detail)
            self._given_back.pop(path, None)

    async def _was_rejected(self, drop: Drop, look: _Look, model: ModelConfig) -> bool:
        """Return whether the file was rejected before, for a fault that it still has.

        Files are compared by what stat(2) says, never by the clock, which may have been wrong then.
        """
        codes = {ChecksumError.code, CheckpointError.code}
        if self._config.current.drop.require_checksum:
            codes.add(MissingChecksumError.code)
        if model.trust.keys:
            codes.update(CODES)
        for update in await self._updates.find(drop.model, State.REJECTED, limit=_REMEMBERED):
            of_drop = update.sha256 is None and (update.file_name, update.file_bytes) == (drop.name, drop.size)
            if of_drop and update.code in codes and await self._noted(update, State.REJECTED) == look.to_dict():
                return update.code not in CODES or await self._is_still_refused(drop, model, update)
        return False

    async def _is_still_refused(self, drop: Drop, model: ModelConfig, last: Update) -> bool:
        """Return whether a signature is refused as before: other keys may be configured by now."""
        try:
            await asyncio.to_thread(self._signatures.of_drop, drop.path, model)
        except RejectedError as error:
            return str(error) == last.reason
        except (EdgedError, OSError):  # the claim reports it
            return False
        return False

    async def _taken_as(self, drop: Drop, look: _Look) -> Update | None:
        """Return the update that has claimed the file; None if none has.

        It is still there if it could not be removed, or if the daemon died in between. To claim it once more could put
        an old model in service again.
        """
        for update in await self._updates.find(drop.model, limit=_REMEMBERED):
            if update.sha256 is not None and (update.file_name, update.file_bytes) == (drop.name, drop.size):
                noted = await self._noted(update, State.CLAIMED)
                if noted is not None and noted.get("file") == str(look.file):
                    return update
        return None

    async def _noted(self, update: Update, state: State) -> dict[str, Any] | None:
        """Return what the journal says of the file itself when its update came into a state, see `_Look`."""
        events = await self._updates.events(update.id)
        return next(
            (event.detail.get(_LOOK) for event in events if event.state is state and _LOOK in event.detail), None
        )

    async def _remove_taken(self, drop: Drop, look: _Look, update: Update) -> None:
        """Remove a file that was claimed before; it is found again later if that fails again."""
        problem = await asyncio.to_thread(remove, drop.path, look.file, look.signature)
        if drop.run is not None and update.sha256 is not None:  # the daemon may have died before that
            await asyncio.to_thread(_note_taken, drop.run, drop.path, look.file, update.sha256)
        if problem is None:
            log.info("%s is removed from the drop folder: update %d has taken it", drop.path, update.id)
        else:
            self._keep_removing(drop, update, problem)

    def _keep_removing(self, drop: Drop, update: Update, problem: str) -> None:
        """Have a claimed file found again, to remove it, because it cannot be removed now."""
        log.warning("cannot remove %s, which is update %d, from the drop folder: %s", drop.path, update.id, problem)
        self._listener.given_back(drop, f"it is update {update.id} already, and cannot be removed: {problem}")

    async def _park(self, drop: Drop, code: str, reason: str) -> None:
        """Leave the file in the drop folder, and journal why."""
        update = await self._create(drop.model, drop.name, drop.size, drop.seen)
        await self._updates.annotate(update.id, code=code, reason=reason)
        self._parked[drop.path] = Parked(drop, update)
        self._count_parked(drop.model)
        log.warning(
            "update %d of %s (%s) waits in the drop folder: %s", update.id, drop.model, update.file_name, reason
        )

    async def _create(self, model: str, file_name: str, size: int, seen: float) -> Update:
        seen_at = time.time() - (time.monotonic() - seen)
        self._metrics.last_drop.labels(model).set(seen_at)
        return await self._updates.create(model, file_name, size, seen_at, seen)

    def _count_parked(self, model: str) -> None:
        self._metrics.drops_held.labels(model).set(self.parked(model))

    async def _claim(
        self, drop: Drop, model: ModelConfig, update: Update, stages: dict[str, float], look: _Look | None
    ) -> tuple[Update, str | None]:
        """Claim a file; return its update, and why it could not be removed from the drop folder."""
        start = time.monotonic()
        journaled = [update]
        signed: Signed | None = None

        def check_signature(source: Path) -> Signed | None:
            nonlocal signed
            signed = self._signatures.of_drop(source, model)
            return signed

        def journal(sha256: str, size: int) -> None:
            stages["claim"] = round(time.monotonic() - start, 3)
            fields: dict[str, Any] = {"sha256": sha256, "key": model.key(sha256), "file_bytes": size, "stages": stages}
            fields["signature"] = None if signed is None else signed.signature
            self._require_state_folder()
            noted = None if look is None else {_LOOK: look.to_dict()}
            journaled.append(self._updates.journal.advance(update.id, State.CLAIMED, noted, **fields))
            if drop.run is not None and drop.fingerprint is not None:
                _note_taken(drop.run, drop.path, drop.fingerprint, sha256)

        # Not in the disk thread: copying takes long, and the journal must be available meanwhile.
        config = self._config.current
        claimed = await asyncio.to_thread(
            claim,
            drop.path,
            self._claimed,
            max_bytes=config.watch.max_bytes,
            quiet=drop.quiet,
            require_checksum=config.drop.require_checksum,
            origin=Origin(drop.model, drop.path.name),
            journal=journal,
            exclusive=self._updates.journal.exclusive,
            check_signature=check_signature,
        )
        if (signature := journaled[-1].signature) is not None:
            text = "update %d of %s (%s) is signed as version %d with %s"
            key = shown(signature.key, signature.key_id)
            log.info(text, update.id, update.model, update.file_name, signature.version, key)
        self._metrics.stage_duration.labels(drop.model, "claim").observe(stages["claim"])
        # Not read anew: nothing may fail once the file has left the drop folder.
        return journaled[-1], claimed.problem

    async def _cannot_claim(self, drop: Drop, update: Update, error: EdgedError, look: _Look | None) -> None:
        """End the update if its file is at fault or gone. If the disk is at fault, the file is found again later."""
        if isinstance(error, RejectedError):
            noted = None if look is None else {_LOOK: look.to_dict()}
            await self._journal_end(update, State.REJECTED, error.code, str(error), noted)
        elif isinstance(error, GoneError):
            await self._journal_end(update, State.FAILED, error.code, str(error))
        else:
            log.error("update %d of %s (%s): %s; it is tried again", update.id, update.model, update.file_name, error)
            self._give_back(drop, error.code, str(error))
            try:
                await self._updates.annotate(update.id, code=error.code, reason=str(error))
            except EdgedError as second:  # the first is what keeps the file where it is; it is journaled later
                log.error("update %d of %s (%s): %s", update.id, update.model, update.file_name, second)

    async def _refuse(self, refusal: Refusal) -> None:
        """Journal, once, a file that the watcher does not take. The file stays where it is."""
        name = refusal.path.name
        known = await self._updates.find(refusal.model, State.REJECTED, limit=_REMEMBERED)
        identity = (name, refusal.size, refusal.code)
        if any((update.file_name, update.file_bytes, update.code) == identity for update in known):
            return
        update = await self._create(refusal.model, name, refusal.size, time.monotonic())
        await self._journal_wait(refusal.path, update)
        await self._journal_end(update, State.REJECTED, refusal.code, f"{name}: {refusal.reason}")

    async def _journal_end(
        self, update: Update, state: State, code: str, reason: str, detail: dict[str, Any] | None = None
    ) -> None:
        await self._updates.advance(update.id, state, detail, code=code, reason=reason)
        self._metrics.count_update(update.model, state.value.lower(), code)
        log.error("update %d of %s (%s) %s: %s", update.id, update.model, update.file_name, state.value.lower(), reason)


def _look_at(path: Path) -> _Look | None:
    """Return what a file of the drop folder is; None if it is gone."""
    file = fingerprint_of(path)
    return None if file is None else _Look(file, fingerprint_of(sidecar_of(path)), fingerprint_of(signature_of(path)))


def _note_taken(run: Path, file: Path, fingerprint: Fingerprint, sha256: str) -> None:
    try:
        note_taken(run, file.relative_to(run).as_posix(), fingerprint, sha256)
    except StateError as error:
        log.warning("%s cannot be noted as taken; remove %s, or its next checkpoint is taken: %s", file, run, error)
