"""The durable history of all updates: SQLite with a write-ahead log; a commit is on the disk before it returns.

The journal records the history. Which generation is live is decided by the `current` links of the model store alone.
What it decides by is kept twice, see service.journal.copies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edged.errors import StateError, UsageError
from service.journal import states
from service.journal.copies import Copies, ModelCopy
from service.journal.database import Database
from service.journal.merge import merge
from service.journal.rows import COLUMNS, event_of, hold_of, json_of, last_times_of, time_of, update_of
from service.journal.salvage import Salvage, salvage
from service.journal.schema import MIGRATIONS, SCHEMA, VERSION
from service.journal.states import State
from service.journal.update import Event, Hold, Update
from service.units import printable

log = logging.getLogger(__name__)

__all__ = ["Event", "Hold", "Journal", "Update"]

# Fields that callers may set in addition to the state.
_SETTABLE = frozenset(
    {"sha256", "key", "generation", "code", "reason", "stages", "report", "file_bytes", "attempt", "signature"}
)
_JSON = frozenset({"stages", "report", "signature"})
_RETRY_OF = "retry_of"  # in the detail of the first event


class Journal:
    """The file journal.db. One process writes; its threads may share one object.

    A damaged file is quarantined as journal.db.damaged and a new journal is begun, with what can be read of the damaged
    one and with what is in the copies: it must neither keep an unattended device from serving, nor lose a hold.

    Args:
        path: Database file; its folder must exist.
        clock: Function that returns the time in seconds since 1970.
        copies: The second copy of what the journal decides by; None to keep and use none.
        expected: Whether the state folder has been used before, so that a missing journal was lost.

    Attributes:
        restored: What the file had lost and what became of it, one line for each time; empty if it was whole.

    Raises:
        StateError: It cannot be opened or created.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        copies: Copies | None = None,
        *,
        expected: bool = False,
    ) -> None:
        self.restored: list[str] = []
        self._clock = clock
        self._copies = copies
        found = [] if copies is None else list(copies.read())
        self._db = Database(path, SCHEMA, VERSION, MIGRATIONS, expected=expected or bool(found))
        self._restore(found, {})
        self._open = {update.id: update for update in self.open_updates()}  # goes on if the file is lost

    def check(self) -> None:
        """Repair the journal if its file was removed, replaced or overwritten while it was open.

        Raises:
            StateError: It cannot be repaired now: the disk is full, or the folder is gone.
        """
        with self._db.locked():
            try:
                problem = self._db.look()
            except OSError as error:
                raise StateError(f"cannot read the journal {self._db.path}: {error.strerror}") from error
            if problem is not None:
                self._db.reopen(problem)
            if self._db.damage is not None:  # of now, or of an earlier time when not all could be restored
                self._restore([] if self._copies is None else list(self._copies.read()), self._open)

    def _restore(self, copies: Sequence[ModelCopy], open_updates: Mapping[int, Update]) -> None:
        """Add what the file has lost, from what can be read of a damaged one, from copies and memory; log it."""
        damage = self._db.damage
        read = Salvage() if damage is None or damage.aside is None else salvage(damage.aside)
        with self._db.transaction():
            merged = merge(self._db, read, copies, open_updates, skip=damage is not None)
            for model in {*self.holds(), *merged.models, *(copy.model for copy in copies)}:
                self._write_copy(model)
        if damage is not None or merged:
            line = merged.describe(self._db.path.name, damage, read)
            log.error("%s", line)
            self.restored.append(line)
        self._db.damage = None

    def _write_copy(self, model: str) -> None:
        """Write the copy of a model, within the transaction that changes what is in it."""
        if self._copies is None or not model:
            return
        # By key, state, code and generation, the newest decides.
        ends = sorted(state.value for state in states.ENDS)
        marks = ", ".join("?" * len(ends))
        newest = f"SELECT MAX(id) FROM updates WHERE model = ? AND key IS NOT NULL AND state IN ({marks})"  # noqa: S608
        where = f"WHERE id IN ({newest} GROUP BY key, state, code, generation) ORDER BY id"
        updates = self._select(where, (model, *ends))
        last = self._db.select("SELECT seq FROM sqlite_sequence WHERE name = 'updates'")
        copy = ModelCopy(model, self.holds().get(model, Hold()), int(last[0][0]) if last else 0, tuple(updates))
        self._copies.write(copy)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads from changing the journal during the block, whose changes are one transaction."""
        with self._db.transaction():
            yield

    def create(self, model: str, file_name: str, file_bytes: int, dropped_at: float | None = None) -> Update:
        """Begin an update in DROPPED.

        An update of the same model and file name that had not been claimed (DROPPED or SETTLED, for example because
        the daemon was stopped just then) is continued instead: it is the same file.

        Args:
            model: Model name.
            file_name: Name of the dropped file.
            file_bytes: Size of the file in bytes.
            dropped_at: When the file was first seen, seconds since 1970; None for now.
        """
        now, file_name = self._clock(), printable(file_name)
        with self._db.transaction():
            unclaimed = self._db.execute(
                "SELECT id FROM updates WHERE model = ? AND file_name = ? AND state IN (?, ?) ORDER BY id DESC LIMIT 1",
                (model, file_name, State.DROPPED.value, State.SETTLED.value),
            ).fetchone()
            if unclaimed is not None:
                self._db.execute(
                    "UPDATE updates SET state = ?, file_bytes = ?, updated_at = ? WHERE id = ?",
                    (State.DROPPED.value, file_bytes, now, unclaimed[0]),
                )
                identity = int(unclaimed[0])
            else:
                identity = self._insert(model, file_name, file_bytes, dropped_at or now, now)
            self._event(identity, now, State.DROPPED, {})
            return self._note_open(self._must_get(identity))

    def retry(self, ended: Update, key: str) -> Update:
        """Begin an update in CLAIMED that takes the file of an ended one again.

        Args:
            ended: Update whose file is claimed again.
            key: Idempotency key of the file with the configuration in force.
        """
        now = self._clock()
        with self._db.transaction():
            identity = self._insert(ended.model, ended.file_name, ended.file_bytes, now, now)
            self._event(identity, now, State.DROPPED, {_RETRY_OF: ended.id})
            self.advance(identity, State.SETTLED)
            return self.advance(identity, State.CLAIMED, sha256=ended.sha256, key=key, signature=ended.signature)

    def advance(self, update_id: int, state: State, detail: Mapping[str, Any] | None = None, **fields: Any) -> Update:
        """Move an update to `state` and set `fields` along with it, in one transaction.

        Args:
            update_id: Number of the update.
            state: State to enter.
            detail: What the event says besides the fields, JSON types.
            fields: Any of sha256, key, generation, code, reason, stages, report, signature and file_bytes; attempt, for
                work that did not begin after all. A state on the way forward clears code and reason, unless they are
                given.

        Raises:
            IllegalTransition: The table of service.journal.states does not allow it.
            StateError: The disk is full or the file cannot be written.
            KeyError: No such update.
        """
        with self._db.transaction():
            before = self._must_get(update_id)
            states.advance(before.state, state)
            if state in states.WAY:
                fields = {"code": None, "reason": None} | fields
            update = self._move(before, state, fields, detail)
            if states.is_end(state):
                self._write_copy(update.model)
            return update

    def resume(self, update_id: int, **fields: Any) -> Update:
        """Move an update to the state from which it goes on after a restart, see `service.journal.states`."""
        with self._db.transaction():
            before = self._must_get(update_id)
            target = states.resume(before.state)
            if target is before.state is not State.CLAIMED:
                return self.annotate(update_id, **fields) if fields else before
            return self._move(before, target, fields)

    def forgive(self, update_ids: Collection[int]) -> None:
        """Take back the attempt of each update that `resume` will begin again after an orderly stop."""
        with self._db.transaction():
            for update in self.open_updates():
                if update.id in update_ids and states.resume(update.state) is State.CLAIMED and update.attempt > 0:
                    self._set(update.id, {"attempt": update.attempt - 1})

    def annotate(self, update_id: int, **fields: Any) -> Update:
        """Set `fields`, see `advance`, without a transition."""
        with self._db.transaction():
            self._set(update_id, fields)
            return self._note_open(self._must_get(update_id))

    def note(self, update_id: int, detail: dict[str, Any]) -> None:
        """Add an event to the history of an update without a transition.

        Raises:
            StateError: The disk is full or the file cannot be written.
            KeyError: No such update.
        """
        with self._db.transaction():
            self._event(update_id, self._clock(), self._must_get(update_id).state, detail)

    def get(self, update_id: int) -> Update | None:
        """Return an update; None if it does not exist."""
        rows = self._select("WHERE id = ?", (update_id,))
        return rows[0] if rows else None

    def require(self, update_id: int) -> Update:
        """Return an update that a user has asked for.

        Raises:
            UsageError: It does not exist.
        """
        update = self.get(update_id)
        if update is None:
            raise UsageError(f"no update {update_id}; `edged history` lists them")
        return update

    def find(self, model: str | None = None, state: State | str | None = None, limit: int = 50) -> list[Update]:
        """Return the updates that match, the newest first.

        Raises:
            UsageError: There is no such state.
        """
        if state is not None and state not in State.__members__.values():
            raise UsageError(f"state has value {state!r}; choose one of {', '.join(State.__members__)}")
        return self._select(
            "WHERE (?1 IS NULL OR model = ?1) AND (?2 IS NULL OR state = ?2) ORDER BY id DESC LIMIT ?3",
            (model, None if state is None else State(state).value, limit),
        )

    def open_updates(self) -> list[Update]:
        """Return the updates that have not ended, the oldest first."""
        open_states = [state.value for state in State if not states.is_end(state)]
        marks = ", ".join("?" * len(open_states))
        return self._select(f"WHERE state IN ({marks}) ORDER BY id", open_states)

    def retry_of(self, update_id: int) -> int | None:
        """Return the number of the ended update whose file an update takes again; None for a dropped file."""
        details = (event.detail for event in self.events(update_id) if event.state is State.DROPPED)
        return next((int(detail[_RETRY_OF]) for detail in details if _RETRY_OF in detail), None)

    def shares_claim(self, update: Update) -> bool:
        """Return whether another open update needs the same claimed file."""
        return any(other.id != update.id and other.sha256 == update.sha256 for other in self.open_updates())

    def last_of_file(self, sha256: str) -> Update | None:
        """Return the newest update of a file; None if there is none."""
        rows = self._select("WHERE sha256 = ? ORDER BY id DESC LIMIT 1", (sha256,))
        return rows[0] if rows else None

    def last_for_key(self, key: str, before: int | None = None) -> Update | None:
        """Return the newest update of a file and config.

        Args:
            key: Idempotency key, see ModelConfig.key.
            before: Number of an update; only older ones are considered. None for all.
        """
        rows = self._select(
            "WHERE key = ?1 AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT 1",
            (key, before),
        )
        return rows[0] if rows else None

    def history(self, model: str, limit: int = 50, *, published: bool = True) -> list[Update]:
        """Return the published updates of a model, or those that were not published, the newest first."""
        which = "IS NOT NULL" if published else "IS NULL"
        return self._select(f"WHERE model = ? AND generation {which} ORDER BY id DESC LIMIT ?", (model, limit))

    def brought_live(self, model: str, generation: int) -> Update | None:
        """Return the newest update that put a generation in service and was not rolled back; None if there is none.

        When the same file was dropped again, the newest update is the one by which the file is known.
        """
        states_in_service = (State.LIVE.value, State.COMMITTED.value)
        rows = self._select(
            "WHERE model = ? AND generation = ? AND state IN (?, ?) ORDER BY id DESC LIMIT 1",
            (model, generation, *states_in_service),
        )
        return rows[0] if rows else None

    def taken_out(self, model: str, generation: int) -> list[Update]:
        """Return the updates of a generation that were rolled back, the oldest first."""
        where = "WHERE model = ? AND generation = ? AND state = ? ORDER BY id"
        return self._select(where, (model, generation, State.ROLLED_BACK.value))

    def last_times(self) -> dict[str, tuple[float, float | None]]:
        """Return when a file was last dropped and when an update last went live, by model name.

        The times are in seconds since 1970; the second one is None if no update went live. An update whose generation
        was live already counts.
        """
        rows = self._db.select(
            "SELECT model, MAX(dropped_at), MAX(live_at) FROM updates LEFT JOIN"
            " (SELECT update_id, MIN(at) AS live_at FROM events WHERE state IN (?, ?) GROUP BY update_id)"
            " ON update_id = id GROUP BY model",
            (State.LIVE.value, State.COMMITTED.value),
        )
        return dict(map(last_times_of, rows))

    def last_time(self) -> float | None:
        """Return the time of the last change of any update, in seconds since 1970; None if there is none."""
        query = "SELECT MAX(updated_at) FROM updates WHERE typeof(updated_at) = 'real'"
        (last,) = self._db.select(query)[0]
        return None if last is None else float(last)

    def events(self, update_id: int) -> list[Event]:
        """Return the events of an update, the oldest first."""
        rows = self._db.select("SELECT at, state, detail FROM events WHERE update_id = ? ORDER BY rowid", (update_id,))
        return [event_of(row) for row in rows]

    def forget(self, most: int, oldest: float, kept: Collection[tuple[str, int]]) -> int:
        """Remove ended updates and their events: the oldest beyond `most`, and those before `oldest`.

        Args:
            most: Number of ended updates that may stay.
            oldest: Time of an update's last change before which it is removed, seconds since 1970.
            kept: Model and generation of updates that stay in any case.

        Returns:
            Number of updates that were removed.
        """
        ends = sorted(state.value for state in states.ENDS)
        marks = ", ".join("?" * len(ends))
        # The marks are question marks only; every value is bound.
        query = f"SELECT id, model, generation, updated_at FROM updates WHERE state IN ({marks}) ORDER BY id DESC"  # noqa: S608
        with self._db.transaction():
            rows = self._db.execute(query, ends).fetchall()
            gone = [
                (identity, str(model))
                for rank, (identity, model, generation, updated_at) in enumerate(rows)
                if (rank >= most or time_of(updated_at, oldest) < oldest) and (model, generation) not in kept
            ]
            for table, column in (("events", "update_id"), ("updates", "id")):
                for identity, _ in gone:
                    self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (identity,))  # noqa: S608 - from above
            for model in {model for _, model in gone}:
                self._write_copy(model)
        return len(gone)

    def holds(self) -> dict[str, Hold]:
        """Return the holds, by model name."""
        rows = self._db.select("SELECT model, pinned, paused, highest_version FROM holds")
        return {str(model): hold_of(values) for model, *values in rows}

    def put_hold(self, model: str, hold: Hold) -> None:
        """Pin or pause a model, or undo that. The highest version stays, see `raise_version`.

        Raises:
            StateError: The disk is full, or the journal or its copy cannot be written.
        """
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO holds (model, pinned, paused) VALUES (?, ?, ?)"
                " ON CONFLICT (model) DO UPDATE SET pinned = excluded.pinned, paused = excluded.paused",
                (model, hold.pinned, hold.paused),
            )
            self._write_copy(model)

    def raise_version(self, model: str, version: int) -> None:
        """Record a signed version of a model that was committed, unless a higher one was."""
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO holds (model, highest_version) VALUES (?, ?) ON CONFLICT (model)"
                " DO UPDATE SET highest_version = max(coalesce(highest_version, 0), excluded.highest_version)",
                (model, version),
            )
            self._write_copy(model)

    def close(self) -> None:
        """Close the file; the object cannot be used afterwards."""
        self._db.close()

    def _insert(self, model: str, file_name: str, file_bytes: int, dropped_at: float, now: float) -> int:
        row = (model, State.DROPPED.value, file_name, file_bytes, dropped_at, now)
        cursor = self._db.execute(
            "INSERT INTO updates (model, state, file_name, file_bytes, dropped_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        return int(cursor.lastrowid or 0)

    def _move(
        self, before: Update, state: State, fields: dict[str, Any], more: Mapping[str, Any] | None = None
    ) -> Update:
        attempt = fields.get("attempt", before.attempt) + (state is State.CLAIMED)
        self._set(before.id, fields)
        self._db.execute("UPDATE updates SET state = ?, attempt = ? WHERE id = ?", (state.value, attempt, before.id))
        detail = {key: value for key, value in fields.items() if value is not None and key not in _JSON}
        self._event(before.id, self._clock(), state, {**detail, **(more or {})})
        return self._note_open(self._must_get(before.id))

    def _set(self, update_id: int, fields: dict[str, Any]) -> None:
        if unknown := set(fields) - _SETTABLE:
            raise TypeError(f"not a field of an update: {', '.join(sorted(unknown))}")
        values = {key: json_of(value) if key in _JSON else value for key, value in fields.items()}
        values["updated_at"] = self._clock()
        assignments = ", ".join(f"{key} = :{key}" for key in values)
        # The names come from _SETTABLE, the values are bound.
        self._db.execute(f"UPDATE updates SET {assignments} WHERE id = :id", values | {"id": update_id})  # noqa: S608

    def _event(self, update_id: int, at: float, state: State, detail: dict[str, Any]) -> None:
        row = (update_id, at, state.value, json.dumps(detail))
        self._db.execute("INSERT INTO events (update_id, at, state, detail) VALUES (?, ?, ?, ?)", row)

    def _note_open(self, update: Update) -> Update:
        """Remember an update as long as it is open."""
        if states.is_end(update.state):
            self._open.pop(update.id, None)
        else:
            self._open[update.id] = update
        return update

    def _must_get(self, update_id: int) -> Update:
        update = self.get(update_id)
        if update is None:
            raise KeyError(update_id)
        return update

    def _select(self, where: str, values: Sequence[object]) -> list[Update]:
        # `where` is written in this class; what comes from outside is bound.
        return [update_of(row) for row in self._db.select(f"SELECT {COLUMNS} FROM updates {where}", values)]  # noqa: S608
