"""What can happen to journal.db, its log and its copies: each damage is done to the folder of a stopped daemon."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

PAGE = 4096
_JOURNAL, _WAL, _SHM, _COPIES = "journal.db", "journal.db-wal", "journal.db-shm", "copies"

Damage = Callable[[Path, Path], None]  # takes the state folder, and a journal from before anything was held


def _cut(name: str, share: float) -> Damage:
    def damage(state: Path, _: Path) -> None:
        with (state / name).open("r+b") as file:
            file.truncate(int((state / name).stat().st_size * share))

    return damage


def _write(name: str, place: int, content: Callable[[int], bytes], length: int | None = None) -> Damage:
    """Overwrite `length` bytes, from `place` on; None for all that follow."""

    def damage(state: Path, _: Path) -> None:
        size = (state / name).stat().st_size
        with (state / name).open("r+b") as file:
            file.seek(min(place, size))
            file.write(content(max(size - place, 0) if length is None else length))

    return damage


def _replace(name: str, by: Callable[[Path], object]) -> Damage:
    def damage(state: Path, _: Path) -> None:
        (state / name).unlink()
        by(state / name)

    return damage


def _remove(*names: str) -> Damage:
    def damage(state: Path, _: Path) -> None:
        for name in names:
            (state / name).unlink()

    return damage


def _execute(sql: str) -> Damage:
    def damage(state: Path, _: Path) -> None:
        with contextlib.closing(sqlite3.connect(state / _JOURNAL)) as connection:
            connection.executescript(sql)

    return damage


def _older(state: Path, older: Path) -> None:
    _remove(_WAL, _SHM)(state, older)
    shutil.copyfile(older, state / _JOURNAL)


def _each_copy(change: Callable[[Path], object]) -> Damage:
    def damage(state: Path, _: Path) -> None:
        for path in (state / _COPIES).iterdir():
            change(path)

    return damage


def _noise(length: int) -> bytes:
    return random.Random(3).randbytes(length)  # noqa: S311 - the same each time


def _text(length: int) -> bytes:
    return b"no database " * (length // 12 + 1)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: Mapping[str, Damage] = {
    "cut in half": _cut(_JOURNAL, 0.5),
    "cut within a page": _cut(_JOURNAL, 0.99),
    "empty": _cut(_JOURNAL, 0),
    "first page zeroed": _write(_JOURNAL, 0, bytes, PAGE),
    "page of holds zeroed": lambda state, older: _zero_table(state, "holds"),
    "page of updates zeroed": lambda state, older: _zero_table(state, "updates"),
    "all zeroed": _write(_JOURNAL, 0, bytes),
    "first bytes changed": _write(_JOURNAL, 0, _noise, 16),
    "noise": _write(_JOURNAL, 0, _noise),
    "noise from the second page on": _write(_JOURNAL, PAGE, _noise),
    "a text": _write(_JOURNAL, 0, _text),
    "deleted": _remove(_JOURNAL),
    "deleted with its log": _remove(_JOURNAL, _WAL, _SHM),
    "a folder in its place": _replace(_JOURNAL, Path.mkdir),
    "a dangling link in its place": _replace(_JOURNAL, lambda path: path.symlink_to("nowhere")),
    "read-only": lambda state, _: (state / _JOURNAL).chmod(0o444),
    "an older one in its place": _older,
    "log deleted": _remove(_WAL),
    "log zeroed": _write(_WAL, 0, bytes),
    "log cut": _cut(_WAL, 0.5),
    "log of noise": _write(_WAL, 0, _noise),
    "a folder in place of the log": _replace(_WAL, Path.mkdir),
    "shared memory of noise": _write(_SHM, 0, _noise),
    "table of holds dropped": _execute("DROP TABLE holds;"),
    "table of updates dropped": _execute("DROP TABLE updates;"),
    "table of events dropped": _execute("DROP TABLE events;"),
    "rows of holds deleted": _execute("DELETE FROM holds;"),
    "all rows deleted": _execute("DELETE FROM holds; DELETE FROM updates; DELETE FROM events;"),
    "column of holds dropped": _execute("ALTER TABLE holds DROP COLUMN pinned;"),
    "states that no table knows": _execute(
        "UPDATE updates SET state = 'GARBAGE'; UPDATE events SET state = 'GARBAGE';"
    ),
    "values of other types": _execute("UPDATE updates SET report = X'FF00', stages = 5, updated_at = 'late', key = 7;"),
    "schema number 0": _execute("PRAGMA user_version = 0;"),
    "schema number 1": _execute("PRAGMA user_version = 1;"),
    "schema number 999": _execute("PRAGMA user_version = 999;"),
    "copies cut": _each_copy(_halve),
    "copies deleted": lambda state, _: shutil.rmtree(state / _COPIES),
    "copies empty": _each_copy(lambda path: path.write_bytes(b"")),
}


def _zero_table(state: Path, table: str) -> None:
    """Zero the first page of a table, once the log is in the file: a page in the log would hide it."""
    with contextlib.closing(sqlite3.connect(state / _JOURNAL)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(query, (table,)).fetchone()
    _write(_JOURNAL, (page - 1) * PAGE, bytes, PAGE)(state, state)
