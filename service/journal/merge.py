"""Adds to a journal what it has lost.

    a damaged file      rows that can still be read
    the copies          holds, and updates that have ended
    memory              updates that have not ended, where the daemon was running

Nothing is taken from the journal. Where two sources disagree about an update, one that has ended counts more than one
that has not, and the later change of two. A model is held if any source says so, and its highest signed version is that
of any source.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.journal.copies import ModelCopy
from service.journal.database import Damage, Database
from service.journal.rows import COLUMNS, hold_of, json_of, update_of
from service.journal.salvage import Salvage
from service.journal.states import is_end
from service.journal.update import Hold, Update

_SKIPPED = 1000  # numbers of updates that are left out after a loss, so that none is given twice


@dataclass
class Merged:
    """What was added to a journal.

    Attributes:
        read: Number of updates that were read from a damaged file.
        updates: Number of updates from the copies, by model.
        open: Number of updates from memory.
        holds: Holds that the journal had not, by model.
    """

    read: int = 0
    updates: Counter[str] = field(default_factory=Counter)
    open: int = 0
    holds: dict[str, Hold] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.read or self.updates or self.open or self.holds)

    @property
    def models(self) -> set[str]:
        """Models of which something was added."""
        return {*self.updates, *self.holds}

    def describe(self, name: str, damage: Damage | None, read: Salvage) -> str:
        """Return one line for a person: what was wrong, what was restored, and what is gone."""
        wrong = "it had lost what its copies know" if damage is None else damage.reason
        aside = "" if damage is None or damage.aside is None else f", quarantined as {damage.aside.name}"
        restored = [f"{model} is {_of(hold)}" for model, hold in sorted(self.holds.items())]
        if self.read:
            restored.append(f"{self.read} updates read from the damaged file")
        restored += [f"{count} ended updates of {model}, as its copy has them" for model, count in self.updates.items()]
        if self.open:
            restored.append(f"{self.open} updates that have not ended")
        gone = (
            "nothing that could be read"
            if damage is None or (read.complete and damage.aside is not None)
            else "the steps and figures of the other updates; a file that was claimed goes back to its drop folder"
        )
        return f"{name} was damaged: {wrong}{aside}; restored: {', '.join(restored) or 'nothing'}; gone: {gone}"


def merge(
    db: Database, read: Salvage, copies: Sequence[ModelCopy], open_updates: Mapping[int, Update], *, skip: bool
) -> Merged:
    """Add to the journal what it lacks, in a transaction of the caller.

    Args:
        db: The journal.
        read: What was read from a damaged file.
        copies: Copies of all models.
        open_updates: Updates in memory that have not ended, by number.
        skip: Whether numbers may have been given that no source knows.
    """
    merged = Merged()
    known = {update.id: update for update in _updates(db)}
    for update in read.updates.values():
        if _put(db, known, update, read.events.get(update.id, ())):
            merged.read += 1
    for update in open_updates.values():
        if _put(db, known, update, (), newest=True):
            merged.open += 1
    for copy in copies:
        for update in copy.updates:
            if _put(db, known, update, ()):
                merged.updates[update.model] += 1
    _hold(db, [read.holds, {copy.model: copy.hold for copy in copies}], merged)
    last = max([*known, *(copy.last_update for copy in copies)], default=0)
    _number_from(db, (last // _SKIPPED + 1) * _SKIPPED if skip and (last or read.updates) else last)
    return merged


def _updates(db: Database) -> Iterable[Update]:
    # The columns are a constant.
    return [update_of(row) for row in db.select(f"SELECT {COLUMNS} FROM updates")]  # noqa: S608


def _put(
    db: Database,
    known: dict[int, Update],
    update: Update,
    events: Sequence[tuple[object, ...]],
    *,
    newest: bool = False,
) -> bool:
    """Insert an update, or put it in the place of an older state of it; returns whether anything was changed."""
    mine = known.get(update.id)
    if mine is not None:
        if (mine.model, mine.file_name) != (update.model, update.file_name):
            return _put_as_another(db, known, update)
        went_on = newest and mine.state is not update.state and not is_end(mine.state)
        if not went_on and not _is_ahead(update, mine):
            return False
    values = {name: getattr(update, name) for name in COLUMNS.split(", ")} | {"state": update.state.value}
    figures = mine or update  # the copies do not have them
    values |= {"stages": json_of(figures.stages), "report": json_of(figures.report)}
    values |= {"signature": json_of(update.signature)}
    marks = ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT OR REPLACE INTO updates ({', '.join(values)}) VALUES ({marks})", values)  # noqa: S608
    restored = (update.updated_at, update.state.value, json.dumps({"restored": "from a copy"}))
    for event in events or (restored,):
        db.execute("INSERT INTO events (update_id, at, state, detail) VALUES (?, ?, ?, ?)", (update.id, *event))
    known[update.id] = update
    return True


def _is_ahead(update: Update, mine: Update) -> bool:
    """Return whether a source knows more of an update than the journal does."""
    if is_end(update.state) != is_end(mine.state):
        return is_end(update.state)
    if not is_end(update.state):
        return False
    if (update.sha256, update.key) != (mine.sha256, mine.key):  # which no change after the end has touched
        return True
    return update.state is not mine.state and update.updated_at > mine.updated_at


def _put_as_another(db: Database, known: dict[int, Update], update: Update) -> bool:
    """Insert an update whose number was given to another one meanwhile, unless the journal knows its file."""
    if update.key is None or any(other.key == update.key for other in known.values()):
        return False
    number = max(known) + 1
    return _put(db, known, Update(**{**vars(update), "id": number}), ())


def _hold(db: Database, sources: Sequence[Mapping[str, Hold]], merged: Merged) -> None:
    rows = db.select("SELECT model, pinned, paused, highest_version FROM holds")
    known = {str(model): hold_of(values) for model, *values in rows}
    for holds in sources:
        for model, hold in holds.items():
            mine = known.get(model, Hold())
            version = max(mine.highest_version or 0, hold.highest_version or 0) or None
            both = Hold(mine.pinned or hold.pinned, mine.paused or hold.paused, version)
            if both != mine:
                marks = "INSERT OR REPLACE INTO holds (model, pinned, paused, highest_version) VALUES (?, ?, ?, ?)"
                db.execute(marks, (model, *vars(both).values()))
                known[model] = merged.holds[model] = both


def _number_from(db: Database, last: int) -> None:
    """Have the next update numbered above `last`."""
    row = db.select("SELECT seq FROM sqlite_sequence WHERE name = 'updates'")
    if not row and last:
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('updates', ?)", (last,))
    elif row and row[0][0] < last:
        db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'updates'", (last,))


def _of(hold: Hold) -> str:
    words = [word for word in ("pinned", "paused") if getattr(hold, word)]
    if hold.highest_version is not None:
        words.append(f"at signed version {hold.highest_version}")
    return " and ".join(words)
