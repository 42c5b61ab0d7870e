"""What can be read of a damaged journal."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from service.journal.salvage import salvage
from service.journal.states import State
from service.journal.store import Journal
from service.journal.update import Hold

PAGE = 4096


def journal_of(path: Path, count: int) -> Journal:
    journal = Journal(path)
    for number in range(count):
        update = journal.create("m", f"{number}.pt", 1)
        journal.advance(update.id, State.REJECTED, code="gate", reason="x" * 500)
    journal.put_hold("m", Hold(pinned=True))
    journal.close()
    return journal


def test_a_whole_file_is_read_completely(tmp_path: Path) -> None:
    journal_of(tmp_path / "journal.db", 20)
    found = salvage(tmp_path / "journal.db")
    assert (found.complete, sorted(found.updates), found.holds) == (True, list(range(1, 21)), {"m": Hold(pinned=True)})
    assert {number: [event[1] for event in events] for number, events in found.events.items()} == {
        number: ["DROPPED", "REJECTED"] for number in range(1, 21)
    }


def test_rows_before_and_after_a_lost_page_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal_of(path, 200)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'updates'").fetchone()[0]
    content = bytearray(path.read_bytes())
    texts = [place for place in range(0, len(content), PAGE) if content[place : place + PAGE].count(b"x" * 500) > 3]
    lost = texts[len(texts) // 2]
    assert lost != (root - 1) * PAGE
    content[lost : lost + PAGE] = bytes(PAGE)
    path.write_bytes(content)
    found = salvage(path)
    assert not found.complete
    assert 1 in found.updates
    assert 200 in found.updates
    assert 100 < len(found.updates) < 200


def test_rows_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal_of(path, 4)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE updates SET state = 'GARBAGE' WHERE id = 1")
        connection.execute("UPDATE updates SET sha256 = '../..' WHERE id = 2")
        connection.execute("UPDATE updates SET file_name = '' WHERE id = 3")
        connection.commit()
    assert list(salvage(path).updates) == [4]


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal_of(path, 3)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "ALTER TABLE updates DROP COLUMN signature; ALTER TABLE holds DROP COLUMN highest_version"
        )
    found = salvage(path)
    assert (found.complete, sorted(found.updates), found.holds) == (True, [1, 2, 3], {"m": Hold(pinned=True)})


def test_what_is_no_database_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database" * 1000)
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder", "none"):
        found = salvage(tmp_path / name)
        assert (found.complete, found.updates, found.holds) == (False, {}, {})
