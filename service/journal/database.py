"""An SQLite file with a write-ahead log: a commit is on the disk before it returns."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error, fsync_directory, fsync_file, temporary_sibling
from edged.errors import StateError

log = logging.getLogger(__name__)

_LOGS = ("-wal", "-shm")
_MAGIC = b"SQLite format 3\x00"
# Messages of an OperationalError that are about the contents.
_ABOUT_CONTENTS = re.compile("no such|already exists|malformed|unsupported file format|duplicate column|encoding")


class DamagedFileError(Exception):
    """The file is not the database that was written."""


@dataclass(frozen=True)
class Damage:
    """What was wrong with a database that was begun anew.

    Attributes:
        reason: What was wrong, for a person.
        aside: Where the damaged file was moved; None if there was no file.
    """

    reason: str
    aside: Path | None


class Database:
    """A connection of one process; its threads may share it.

    A damaged file is quarantined as NAME.damaged, with its logs, and a new one is begun.

    Args:
        path: Database file; its folder must exist.
        schema: SQL that creates the tables.
        version: Version of the schema, 1 or more.
        migrations: SQL that turns the tables of a version into those of the next one, by version.
        expected: Whether the file has existed before, so that a missing one is damage.

    Attributes:
        damage: What was wrong with the file; None if nothing was.
        suspect: What is known to be wrong with the file since it was opened; None if nothing is.

    Raises:
        StateError: It cannot be opened or created, or was written by a newer version.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        migrations: Mapping[int, str] | None = None,
        *,
        expected: bool = False,
    ) -> None:
        self.path = path
        self.damage: Damage | None = None
        self.suspect: str | None = None
        self._schema = schema
        self._version = version
        self._migrations = migrations or {}
        self._lock = threading.RLock()
        with self._as_state_error():
            self._open(expected)

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
            self._close()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads out during the block."""
        with self._lock:
            yield

    def look(self) -> str | None:
        """Return what is wrong with the file that is open: it was replaced, removed, overwritten; None if nothing is.

        Raises:
            OSError: The folder cannot be read.
        """
        if self.suspect is not None:
            return self.suspect
        if (replaced := self._replaced()) is not None:
            return replaced
        begins = os.pread(self._descriptor, len(_MAGIC), 0)
        return None if begins == _MAGIC else "it was overwritten: it does not begin as a database does"

    def reopen(self, reason: str) -> None:
        """Quarantine what is in the place of the file, and go on with another one.

        If the open file was only removed or replaced, it is still whole: the other one is a copy of it. Else it is new.

        Args:
            reason: What is wrong with the file.

        Raises:
            StateError: The folder cannot be written; the open file stays in use.
        """
        with self._lock, self._as_state_error():
            rescued = self._rescue() if self._replaced() is not None else None
            self.suspect = reason
            aside = _quarantine(self.path)
            self._close()  # afterwards: it removes the log that it finds next to the file
            if rescued is not None:
                rescued.replace(self.path)
                fsync_directory(self.path.parent)
            self._open(expected=False)
            self.damage, self.suspect = Damage(reason, aside), None

    def _replaced(self) -> str | None:
        """Return what became of the name of the open file; None if the file still has it."""
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return "it was removed"
        return None if (status.st_dev, status.st_ino) == self._identity else "another file is in its place"

    def _rescue(self) -> Path | None:
        """Write a copy of the open file, which has no name any more; None if it cannot be read."""
        target = temporary_sibling(self.path)
        try:
            with contextlib.closing(sqlite3.connect(target)) as copy:
                self._connection.backup(copy)
            fsync_file(target)
        except (sqlite3.Error, OSError) as error:
            target.unlink(missing_ok=True)
            if isinstance(error, OSError) or "disk is full" in str(error):
                raise  # the open file stays in use, and is copied later
            log.warning("the journal that is open cannot be copied: %s", error)
            return None
        return target

    def _open(self, expected: bool) -> None:
        try:
            self._check_kind(expected)
            self._connection = self._connect()
        except DamagedFileError as error:
            self._begin_anew(error)
        except sqlite3.Error as error:  # most often no access or no space
            if not _is_about_contents(error):
                raise
            self._begin_anew(error)
        # Never closed before the connection: closing any descriptor of a file ends all locks of the process on it, and
        # those of SQLite are what keeps a reader in another process from removing the log.
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self._identity = status.st_dev, status.st_ino

    def _close(self) -> None:
        self._connection.close()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _begin_anew(self, error: Exception) -> None:
        self.damage = Damage(str(error), _quarantine(self.path))
        self._connection = self._connect()

    def _check_kind(self, expected: bool) -> None:
        """Check that the files are files, and can be written.

        Raises:
            DamagedFileError: They are something else, empty, or missing.
        """
        for suffix in _LOGS:
            file = self.path.with_name(self.path.name + suffix)
            if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
                raise DamagedFileError(f"{file.name} is no file")
        if not os.path.lexists(self.path):
            if expected:
                raise DamagedFileError("it is missing")
            return
        status = self.path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFileError("it is no file")
        if status.st_size == 0:
            raise DamagedFileError("it is empty")
        if not os.access(self.path, os.W_OK):
            log.warning("%s was read-only; made writable", self.path)
            self.path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)

    def _connect(self) -> sqlite3.Connection:
        # Transactions are begun and ended by Database.transaction alone; its lock keeps other threads out.
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        # A damaged text is shown as it is.
        connection.text_factory = lambda text: text.decode(errors="backslashreplace")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check the tables, or create or migrate them.

        Raises:
            DamagedFileError: The file is damaged, or has not the tables that its version has.
            StateError: It was written by a newer version.
        """
        version, found = self._version, connection.execute("PRAGMA user_version").fetchone()[0]
        tables = _tables(connection)
        if found > version and tables != self._expected_tables():
            raise StateError(f"{self.path} was written by a newer edged (schema {found}, not {version}); update edged")
        if found == 0 and not tables:
            connection.executescript(f"BEGIN IMMEDIATE; {self._schema} PRAGMA user_version = {version}; COMMIT;")
            return
        if not 0 < found <= version:
            raise DamagedFileError(f"it says that it has schema {found}, and has the tables of another one")
        if (verdict := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise DamagedFileError(str(verdict).partition("\n")[0])
        for older in range(found, version):
            migration = self._migrations[older]
            connection.executescript(f"BEGIN IMMEDIATE; {migration} PRAGMA user_version = {older + 1}; COMMIT;")
        if missing := self._expected_tables() - _tables(connection):
            table, column = min(missing)
            raise DamagedFileError(f"it has no column {column} of a table {table}")

    def _expected_tables(self) -> set[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(":memory:")) as model:
            model.executescript(self._schema)
            return _tables(model)

    @contextlib.contextmanager
    def _as_state_error(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if _is_about_contents(error):
                self.suspect = str(error)
                message = f"the journal {self.path} is damaged: {error}; it is repaired within seconds, try again then"
            else:
                message = f"cannot write the journal {self.path}: {error}; free space there or make it writable"
            raise StateError(message) from error


def _is_about_contents(error: Exception) -> bool:
    """Return whether an error says that the file is damaged; all others, such as a full disk, pass."""
    if isinstance(error, sqlite3.OperationalError):
        return _ABOUT_CONTENTS.search(str(error)) is not None
    return type(error) is sqlite3.DatabaseError


def _tables(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return the tables with their columns."""
    rows = connection.execute(
        "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c"
        " WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
    )
    return set(rows.fetchall())


def _quarantine(path: Path) -> Path | None:
    """Move a database aside with its logs, and return where it is; None if there is nothing.

    One that was quarantined before is kept as NAME.damaged.before, unless there is one already.
    """
    aside = path.with_name(f"{path.name}.damaged")
    before = aside.with_name(f"{aside.name}.before")
    with as_state_error(path):
        if os.path.lexists(path) and os.path.lexists(aside) and not os.path.lexists(before):
            for suffix in ("", *_LOGS):
                _move(aside, before, suffix)
        found = _move(path, aside, "")
        for suffix in _LOGS:  # a log alone belongs to nothing
            _move(path, aside, suffix)
        fsync_directory(path.parent)
    return aside if found else None


def _move(source: Path, target: Path, suffix: str) -> bool:
    """Rename source+suffix to target+suffix, in place of what is there; returns whether there is such a file."""
    old, new = (path.with_name(path.name + suffix) for path in (source, target))
    if not os.path.lexists(old):
        return False
    if new.is_dir() and not new.is_symlink():
        new.rename(temporary_sibling(new))
    elif old.is_dir() and os.path.lexists(new):
        new.unlink()
    old.rename(new)
    return True
