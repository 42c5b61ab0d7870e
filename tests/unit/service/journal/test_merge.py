"""A damaged journal gets back what must not be lost, whatever the damage."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.journal_damage import DAMAGES
from edged.errors import StateError
from service.journal.copies import Copies
from service.journal.states import State
from service.journal.store import Journal
from service.journal.update import Hold, Update
from tests.support.small_disk import missing, small_disk


def open_journal(folder: Path, *, expected: bool = True) -> Journal:
    return Journal(folder / "journal.db", copies=Copies(folder / "copies"), expected=expected)


def ended(journal: Journal, name: str, state: State, **fields: object) -> Update:
    update = journal.create("cats", name, 10)
    journal.advance(update.id, State.SETTLED)
    journal.advance(update.id, State.CLAIMED, sha256="ab", key=f"{name}:1")
    if state is State.ROLLED_BACK:
        for step in (State.PUBLISHED, State.WARMED, State.LIVE):
            journal.advance(update.id, step, **({"generation": 2} if step is State.PUBLISHED else {}))
    return journal.advance(update.id, state, **fields)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a daemon that was killed: a pinned and a paused model, a rejected file, one that was rolled back."""
    folder, state = tmp_path_factory.mktemp("running"), tmp_path_factory.mktemp("killed") / "state"
    journal = open_journal(folder, expected=False)
    ended(journal, "first.pt", State.FAILED)
    journal.close()
    shutil.copyfile(folder / "journal.db", state.with_name("older.db"))
    journal = open_journal(folder)
    ended(journal, "bad.pt", State.REJECTED, code="gate", reason="too bad")
    ended(journal, "worse.pt", State.ROLLED_BACK, code="probation", reason="it failed")
    journal.put_hold("cats", Hold(pinned=True))
    journal.put_hold("dogs", Hold(paused=True))
    journal.raise_version("cats", 7)
    journal.put_hold("birds", Hold(pinned=True))
    journal.put_hold("birds", Hold())
    shutil.copytree(folder, state)
    journal.close()
    return state


@pytest.mark.parametrize("name", DAMAGES)
def test_no_hold_and_no_verdict_is_lost(
    name: str, killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    shutil.copytree(killed, state)
    DAMAGES[name](state, killed.with_name("older.db"))
    for start in range(2):  # the second one finds nothing more to restore
        journal = open_journal(state)
        holds = {model: hold for model, hold in journal.holds().items() if hold != Hold()}
        assert holds == {"cats": Hold(pinned=True, highest_version=7), "dogs": Hold(paused=True)}
        for key, verdict in (("bad.pt:1", State.REJECTED), ("worse.pt:1", State.ROLLED_BACK)):
            before = journal.last_for_key(key)
            assert before is not None
            assert (before.state, before.file_name) == (verdict, key.partition(":")[0])
        assert [update.state for update in journal.taken_out("cats", 2)] == [State.ROLLED_BACK]
        last = max(update.id for update in journal.find())
        assert journal.create("cats", f"next-{start}.pt", 1).id > last
        assert all(line.startswith("journal.db was damaged: ") and line in caplog.text for line in journal.restored)
        assert set(journal.last_times()) >= {"cats"}
        assert (journal.last_time() or 0.0) > 0
        assert journal.forget(100, 1.0, ()) == 0
        if start == 1:
            assert journal.restored == []
        journal.close()


def test_a_journal_that_is_whole_needs_nothing(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "state")
    journal = open_journal(tmp_path / "state")
    assert journal.restored == []
    journal.close()


def test_no_number_is_given_twice_after_a_loss(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, expected=False)
    ended(journal, "a.pt", State.REJECTED)
    open_one = journal.create("cats", "open.pt", 1)
    journal.close()
    (tmp_path / "journal.db").unlink()
    journal = open_journal(tmp_path)
    assert journal.create("cats", "b.pt", 1).id > max(open_one.id, 1000)
    journal.close()


def test_what_is_held_by_either_is_held(tmp_path: Path) -> None:
    """An older edged, for example, changes the journal alone."""
    journal = open_journal(tmp_path, expected=False)
    journal.put_hold("m", Hold(paused=True))
    journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        connection.execute("UPDATE holds SET pinned = 1, paused = 0")
        connection.commit()
    journal = open_journal(tmp_path)
    assert journal.holds() == {"m": Hold(pinned=True, paused=True)}
    assert "m is pinned and paused" in journal.restored[0]
    journal.close()


def test_a_journal_of_before_gets_its_copies_and_nothing_is_said(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.put_hold("m", Hold(pinned=True))
    journal.close()
    journal = open_journal(tmp_path)
    assert journal.restored == []
    journal.close()
    assert [copy.hold for copy in Copies(tmp_path / "copies").read()] == [Hold(pinned=True)]


def test_what_was_forgotten_does_not_come_back(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, expected=False)
    for name in ("a.pt", "b.pt"):
        ended(journal, name, State.REJECTED)
    assert journal.forget(1, 0.0, ()) == 1
    journal.close()
    journal = open_journal(tmp_path)
    assert ([update.file_name for update in journal.find()], journal.restored) == (["b.pt"], [])
    journal.close()


def test_the_steps_of_a_damaged_file_are_read(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, expected=False)
    update = ended(journal, "a.pt", State.REJECTED, code="gate", reason="too bad")
    events = journal.events(update.id)
    journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        connection.execute("DROP TABLE holds")
    journal = open_journal(tmp_path)
    assert (journal.get(update.id), journal.events(update.id)) == (update, events)
    assert "it has no column highest_version of a table holds" in journal.restored[0]
    assert "1 updates read from the damaged file; gone: nothing that could be read" in journal.restored[0]
    journal.close()


@pytest.mark.parametrize("how", ["removed", "replaced", "overwritten", "cut"])
def test_a_journal_that_is_damaged_while_it_is_open_goes_on(how: str, tmp_path: Path) -> None:
    journal = open_journal(tmp_path, expected=False)
    banned = ended(journal, "a.pt", State.REJECTED, code="gate")
    waiting = journal.advance(journal.create("cats", "b.pt", 1).id, State.SETTLED)
    journal.put_hold("cats", Hold(pinned=True))
    path = tmp_path / "journal.db"
    if how in ("removed", "replaced"):
        path.unlink()
    if how == "replaced":
        path.write_bytes(b"another file" * 1000)
    if how == "overwritten":
        with path.open("r+b") as file:
            file.write(b"no database" * 2000)
    if how == "cut":
        with path.open("r+b") as file:
            file.truncate(0)
    journal.check()
    assert journal.holds() == {"cats": Hold(pinned=True)}
    assert [update.id for update in journal.open_updates()] == [waiting.id]
    known = journal.last_for_key("a.pt:1")
    assert known is not None
    assert (known.id, known.state, known.code) == (banned.id, State.REJECTED, "gate")
    assert len(journal.restored) == 1
    journal.check()
    assert len(journal.restored) == 1
    journal.advance(waiting.id, State.CLAIMED)
    journal.close()
    journal = open_journal(tmp_path)
    assert [update.state for update in journal.open_updates()] == [State.CLAIMED]
    assert journal.restored == []
    journal.close()


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_repair_that_failed_halfway_is_tried_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        journal = Journal(tmp_path / "journal.db", copies=Copies(disk.path / "copies"))
        banned = ended(journal, "a.pt", State.REJECTED, code="gate")
        journal.put_hold("cats", Hold(pinned=True))
        (tmp_path / "journal.db").write_bytes(b"no database" * 2000)
        disk.fill()
        for _ in range(2):
            with pytest.raises(StateError, match="No space left"):
                journal.check()
        assert journal.restored == []
        disk.clear()
        journal.check()
        assert journal.holds() == {"cats": Hold(pinned=True)}
        known = journal.last_for_key("a.pt:1")
        assert known is not None
        assert (known.id, known.state) == (banned.id, State.REJECTED)
        assert len(journal.restored) == 1
        journal.close()


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_removed_journal_is_used_until_the_disk_has_room_for_its_copy(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        journal = Journal(disk.path / "journal.db", copies=Copies(tmp_path / "copies"))
        update = ended(journal, "a.pt", State.REJECTED, code="gate")
        events = journal.events(update.id)
        (disk.path / "journal.db").unlink()
        disk.fill()
        for _ in range(2):
            with pytest.raises(StateError, match="free space"):
                journal.check()
        assert journal.get(update.id) == update
        assert [path.name for path in disk.path.iterdir() if "journal.db" in path.name and "-" not in path.name] == []
        disk.clear()
        journal.check()
        assert (journal.get(update.id), journal.events(update.id)) == (update, events)  # the copies have no events
        assert (disk.path / "journal.db").exists()
        journal.close()


def test_a_check_leaves_the_locks_of_the_file_alone(tmp_path: Path) -> None:
    """Or another process that reads the journal would take its log away, with what it holds."""
    journal = open_journal(tmp_path, expected=False)
    update = journal.create("cats", "a.pt", 1)
    journal.check()
    reader = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM holds').fetchall(); c.close()"
    )
    subprocess.run([sys.executable, "-c", reader, tmp_path / "journal.db"], check=True)
    assert (tmp_path / "journal.db-wal").exists()
    assert journal.advance(update.id, State.SETTLED).state is State.SETTLED
    journal.close()
    assert not (tmp_path / "journal.db-wal").exists()
