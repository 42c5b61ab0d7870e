"""Reads what can still be read of a damaged journal."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from service.journal.rows import COLUMNS, hold_of, update_of
from service.journal.states import State
from service.journal.update import Hold, Update

_HOLDS = "holds"
_EVENT_COLUMNS = "update_id, at, state, detail"


@dataclass
class Salvage:
    """What was read.

    Attributes:
        updates: Updates by number.
        events: Rows of events (time, state, detail) by the number of their update, the oldest first.
        holds: Holds by model.
        complete: Whether all updates and events could be read.
    """

    updates: dict[int, Update] = field(default_factory=dict)
    events: dict[int, list[tuple[object, ...]]] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    complete: bool = True


def salvage(path: Path) -> Salvage:
    """Read the rows of a damaged journal that are readable and make sense; the file is not changed.

    Args:
        path: Database file, with its write-ahead log next to it.
    """
    found = Salvage()
    if not path.is_file():
        found.complete = False
        return found
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error:
        found.complete = False
        return found
    with contextlib.closing(connection):
        connection.text_factory = lambda text: text.decode(errors="backslashreplace")

        def rows(table: str, columns: str) -> Iterator[tuple[object, ...]]:
            return _rows(connection, table, columns, found)

        for row in rows("updates", COLUMNS):
            update = update_of(row)
            if _makes_sense(row, update):
                found.updates[update.id] = update
        for number, *event in rows("events", _EVENT_COLUMNS):
            if isinstance(number, int) and event[1] in State.__members__.values():
                found.events.setdefault(number, []).append(tuple(event))
        known = _columns(connection, _HOLDS) >= {"pinned", "paused"}  # or nothing is known of any
        for model, *hold in rows(_HOLDS, "model, pinned, paused, highest_version"):
            if known and isinstance(model, str):
                found.holds[model] = hold_of(hold)
    return found


def _rows(connection: sqlite3.Connection, table: str, columns: str, result: Salvage) -> Iterator[tuple[object, ...]]:
    """Yield the rows from the first one on until one is unreadable, then those from the last one back to there."""
    seen: set[int] = set()
    there = _columns(connection, table)
    columns = ", ".join(name if name in there else f"NULL AS {name}" for name in columns.split(", "))
    for order in ("", "DESC"):
        found: dict[int, tuple[object, ...]] = {}
        # The names come from this file.
        query = f"SELECT rowid, {columns} FROM {table} NOT INDEXED ORDER BY rowid {order}"  # noqa: S608
        readable = True
        try:
            for number, *values in connection.execute(query):
                if number in seen:
                    break
                found[number] = tuple(values)
        except (sqlite3.Error, OverflowError):
            readable = False
        seen |= found.keys()
        yield from (found[number] for number in sorted(found))
        if readable:
            return
        if table != _HOLDS:  # those are in the copies
            result.complete = False


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the columns that a table has; an older version has not all of them."""
    try:
        return {row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    except sqlite3.Error:
        return set()


def _makes_sense(row: tuple[object, ...], update: Update) -> bool:
    """Return whether a row is one that the daemon has written, as far as the row shows."""
    values = dict(zip(COLUMNS.split(", "), row, strict=True))
    is_state = values["state"] in State.__members__.values()
    as_written = values["sha256"] == update.sha256 and values["generation"] == update.generation
    return update.id > 0 and bool(update.model) and bool(update.file_name) and is_state and as_written
