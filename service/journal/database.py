"""An SQLite file with a write-ahead log: a commit is on the disk before it returns."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edged.errors import StateError

log = logging.getLogger(__name__)


class Database:
    """A connection of one process; its threads may share it.

    A damaged file is quarantined as NAME.damaged and a new one is begun.

    Args:
        path: Database file; its folder must exist.
        schema: SQL that creates the tables.
        version: Version of the schema, 1 or more.
        migrations: SQL that turns the tables of a version into those of the next one, by version.

    Raises:
        StateError: It cannot be opened or created, or was written by a newer version.
    """

    def __init__(self, path: Path, schema: str, version: int, migrations: Mapping[int, str] | None = None) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._as_state_error():
            try:
                self._connection = _connect(path, schema, version, migrations or {})
            except sqlite3.OperationalError:  # no access, no space: nothing wrong with the contents
                raise
            except sqlite3.DatabaseError as error:
                _quarantine(path, error)
                self._connection = _connect(path, schema, version, {})

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as one transaction, or as a part of the transaction around it.

        Raises:
            StateError: The disk is full or the file cannot be written.
        """
        with self._lock, self._as_state_error():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # on a full disk SQLite has rolled back itself
                    self._connection.execute("ROLLBACK")
                raise

    def execute(self, sql: str, values: Sequence[object] | dict[str, Any] = ()) -> sqlite3.Cursor:
        """Execute a statement inside a transaction of the caller."""
        return self._connection.execute(sql, values)

    def select(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self._lock, self._as_state_error():
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the file; the object cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _as_state_error(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            message = f"cannot write the journal {self.path}: {error}; free space there or make it writable"
            raise StateError(message) from error


def _connect(path: Path, schema: str, version: int, migrations: Mapping[int, str]) -> sqlite3.Connection:
    # Transactions are begun and ended by Database.transaction alone; its lock keeps other threads out.
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > version:
            raise StateError(f"{path} was written by a newer edged (schema {found}, not {version}); update edged")
        if found == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version}; COMMIT;")
        elif (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(verdict)
        for older in range(found or version, version):
            connection.executescript(f"BEGIN IMMEDIATE; {migrations[older]} PRAGMA user_version = {older + 1}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _quarantine(path: Path, error: sqlite3.DatabaseError) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    log.error("%s is damaged (%s); quarantined as %s, a new one is begun", path, error, aside.name)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(aside)
