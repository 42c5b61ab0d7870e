import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.errors import StateError, UsageError
from service.journal.states import ENDS, NEXT, WAY, IllegalTransition, State, resume
from service.journal.store import Hold, Journal
from service.journal.update import UpdateReport, UpdateSignature


@pytest.fixture
def journal(tmp_path):
    times = iter(range(1000, 100_000))
    opened = Journal(tmp_path / "journal.db", clock=lambda: float(next(times)))
    yield opened
    opened.close()


def claimed(journal, model="m", name="a.pth", **fields):
    update = journal.create(model, name, 10)
    journal.advance(update.id, State.SETTLED)
    return journal.advance(update.id, State.CLAIMED, **fields)


def test_an_update_keeps_what_is_set(journal):
    update = journal.create("m", "a.pth", 10, dropped_at=5.5)
    assert (update.state, update.dropped_at, update.attempt, update.sha256) == (State.DROPPED, 5.5, 0, None)
    journal.advance(update.id, State.SETTLED)
    update = journal.advance(update.id, State.CLAIMED, sha256="ab", key="ab:1")
    assert (update.sha256, update.key, update.attempt, update.generation) == ("ab", "ab:1", 1, None)
    update = journal.annotate(update.id, stages={"verify": 0.123}, report=UpdateReport({"bits": 4, "layers": [1.5]}))
    assert (update.stages, update.report.to_dict()) == ({"verify": 0.123}, {"bits": 4, "layers": [1.5]})
    assert journal.get(update.id) == update


def test_the_dictionary_of_an_update_is_json(journal):
    update = claimed(journal)
    shown = update.to_dict()
    assert shown["state"] == "CLAIMED"
    assert shown["dropped_at"] == "1970-01-01T00:16:40.000Z"


def test_a_step_forward_clears_code_and_reason(journal):
    update = claimed(journal)
    update = journal.advance(update.id, State.DEFERRED, code="memory", reason="too little")
    assert (update.code, update.reason) == ("memory", "too little")
    update = journal.advance(update.id, State.CLAIMED)
    assert (update.code, update.reason, update.attempt) == (None, None, 2)


def test_an_illegal_step_changes_nothing(journal):
    update = journal.create("m", "a.pth", 10)
    with pytest.raises(IllegalTransition, match="DROPPED -> LIVE"):
        journal.advance(update.id, State.LIVE, sha256="ab")
    assert journal.get(update.id) == update
    assert len(journal.events(update.id)) == 1


def test_an_unknown_field_changes_nothing(journal):
    update = claimed(journal)
    with pytest.raises(TypeError, match="model"):
        journal.advance(update.id, State.VERIFIED, model="other")
    assert journal.get(update.id) == update


def test_a_file_that_was_not_claimed_is_the_same_update_after_a_restart(journal):
    first = journal.create("m", "a.pth", 10, dropped_at=1.0)
    journal.advance(first.id, State.SETTLED)
    again = journal.create("m", "a.pth", 12, dropped_at=2.0)
    assert (again.id, again.state, again.file_bytes, again.dropped_at) == (first.id, State.DROPPED, 12, 1.0)
    assert journal.create("n", "a.pth", 12).id != first.id
    assert journal.create("m", "b.pth", 12).id != first.id


def test_a_claimed_name_is_free_for_a_new_update(journal):
    assert journal.create("m", claimed(journal).file_name, 10).id == 2


def test_lists_are_newest_first_and_filtered(journal):
    one, two = claimed(journal, "m", "a"), claimed(journal, "n", "b")
    journal.advance(two.id, State.REJECTED, code="checkpoint", reason="bad")
    three = journal.create("m", "c", 1)
    assert [u.id for u in journal.find()] == [three.id, two.id, one.id]
    assert [u.id for u in journal.find(limit=1)] == [three.id]
    assert [u.id for u in journal.find(model="m")] == [three.id, one.id]
    assert [u.id for u in journal.find(state=State.REJECTED)] == [two.id]
    assert [u.id for u in journal.find(model="m", state="CLAIMED")] == [one.id]
    assert [u.id for u in journal.open_updates()] == [one.id, three.id]
    with pytest.raises(UsageError, match="choose one of DROPPED, "):
        journal.find(state="GONE")


def test_the_newest_of_a_key_before_an_update(journal):
    one, two = claimed(journal, name="a", key="k"), claimed(journal, name="b", key="k")
    assert journal.last_for_key("k").id == two.id
    assert journal.last_for_key("k", before=two.id).id == one.id
    assert journal.last_for_key("k", before=one.id) is None


def test_history_lists_published_updates(journal):
    update, other = claimed(journal, name="a"), claimed(journal, name="b")
    journal.advance(update.id, State.PUBLISHED, generation=7)
    assert [u.generation for u in journal.history("m")] == [7]
    assert [u.id for u in journal.history("m", published=False)] == [other.id]
    assert journal.history("n", published=False) == []
    assert other.generation is None


def live(journal, generation, **fields):
    update = claimed(journal, **fields)
    for state in (State.PUBLISHED, State.WARMED, State.LIVE, State.COMMITTED):
        journal.advance(update.id, state, generation=generation)
    return update.id


def test_a_generation_is_known_by_the_newest_update_that_put_it_in_service(journal):
    first = live(journal, 7, name="a")
    again = live(journal, 7, name="b")
    failed = claimed(journal, name="c")
    journal.advance(failed.id, State.PUBLISHED, generation=7)
    journal.advance(failed.id, State.FAILED)
    assert journal.brought_live("m", 7).id == again
    assert journal.brought_live("m", 8) is None
    assert journal.taken_out("m", 7) == []
    journal.advance(again, State.ROLLED_BACK, code="rollback", reason="on request")
    assert journal.brought_live("m", 7).id == first
    assert [update.id for update in journal.taken_out("m", 7)] == [again]
    back = journal.advance(again, State.COMMITTED)
    assert (back.state, back.code, back.reason) == (State.COMMITTED, None, None)
    assert journal.brought_live("m", 7).id == again


def test_the_last_drop_and_the_last_success_of_each_model(journal):
    assert journal.last_times() == {}
    update = claimed(journal)
    for state in WAY[WAY.index(State.VERIFIED) : WAY.index(State.LIVE) + 1]:
        journal.advance(update.id, state)
    live_at = journal.events(update.id)[-1].at
    journal.advance(update.id, State.COMMITTED)  # after its probation, which is not when it went live
    journal.create("m", "later.pth", 10, dropped_at=5000.0)
    journal.create("n", "b.pth", 10, dropped_at=7.0)
    assert journal.last_times() == {"m": (5000.0, live_at), "n": (7.0, None)}
    unchanged = claimed(journal, "n", "c.pth")
    journal.advance(unchanged.id, State.COMMITTED)
    assert journal.last_times()["n"] == (unchanged.dropped_at, journal.events(unchanged.id)[-1].at)


def test_holds_outlive_the_journal_object(tmp_path):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.put_hold("m", Hold(pinned=True))
    journal.put_hold("n", Hold(paused=True))
    journal.put_hold("n", Hold())
    journal.close()
    journal = Journal(path)
    assert journal.holds() == {"m": Hold(pinned=True), "n": Hold()}
    journal.close()


def test_the_highest_version_only_rises_and_outlives_pins(tmp_path):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.raise_version("m", 7)
    journal.put_hold("m", Hold(pinned=True))
    journal.put_hold("m", Hold(highest_version=3))  # only pins and pauses are put
    journal.raise_version("m", 6)
    journal.put_hold("n", Hold(paused=True))
    journal.raise_version("n", 1)
    journal.close()
    journal = Journal(path)
    assert journal.holds() == {"m": Hold(highest_version=7), "n": Hold(paused=True, highest_version=1)}
    journal.close()


def test_a_retry_has_the_signature_of_its_file(journal):
    signature = UpdateSignature(version=7, key="a.pub", key_id="00ff", envelope="{}")
    update = claimed(journal)
    assert update.signature is None
    ended = journal.advance(journal.annotate(update.id, signature=signature).id, State.REJECTED)
    assert ended.signature == signature
    assert journal.retry(ended, "key").signature == signature
    assert ended.to_dict()["signature"] == {"version": 7, "key": "a.pub", "key_id": "00ff"}


_OLDER = "ALTER TABLE updates DROP COLUMN signature; ALTER TABLE holds DROP COLUMN highest_version;"


@pytest.mark.parametrize(
    "older",
    [
        "ALTER TABLE updates DROP COLUMN signature; DROP TABLE holds; PRAGMA user_version = 1;",
        f"{_OLDER} PRAGMA user_version = 2;",
    ],
)
def test_a_journal_of_an_older_version_is_migrated(tmp_path, older):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    update = journal.create("m", "a.pt", 1)
    journal.close()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(older)
    journal = Journal(path)
    assert journal.get(update.id) == update
    journal.put_hold("m", Hold(paused=True))
    journal.close()
    journal = Journal(path)
    assert journal.holds() == {"m": Hold(paused=True)}
    journal.close()


def test_events_record_every_transition(journal):
    update = claimed(journal, sha256="ab")
    journal.advance(update.id, State.REJECTED, code="unsafe_checkpoint", reason="it wants to run os.system")
    events = journal.events(update.id)
    assert [event.state for event in events] == [State.DROPPED, State.SETTLED, State.CLAIMED, State.REJECTED]
    assert events[-1].detail == {"code": "unsafe_checkpoint", "reason": "it wants to run os.system"}
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_file_names_cannot_break_the_journal(journal):
    name = b"a\xff'; DROP TABLE updates; --\n.pth".decode("utf-8", "surrogateescape")
    update = journal.create("m", name, 1)
    assert update.file_name == "a\\xff'; DROP TABLE updates; --\\n.pth"
    assert journal.create("m", name, 1).id == update.id


def test_a_missing_update_is_an_error(journal):
    assert journal.get(99) is None
    with pytest.raises(KeyError):
        journal.advance(99, State.SETTLED)


def test_the_journal_survives_kill_9_in_the_middle_of_writing(tmp_path):
    """Whatever the writer said it had written is there, and nothing is half there."""
    script = """
import sys
from pathlib import Path
from service.journal.store import Journal
from service.journal.states import State
journal = Journal(Path(sys.argv[1]))
while True:
    update = journal.create("m", f"file-{journal.find(limit=1)[0].id if journal.find(limit=1) else 0}", 1)
    journal.advance(update.id, State.SETTLED)
    journal.advance(update.id, State.CLAIMED, sha256="ab")
    print(update.id, flush=True)
"""
    path = tmp_path / "journal.db"
    writer = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True)
    reported = [int(next(writer.stdout)) for _ in range(20)]
    writer.kill()
    reported += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    writer.wait()
    journal = Journal(path)
    for update_id in reported:
        assert journal.get(update_id).state is State.CLAIMED
        assert len(journal.events(update_id)) == 3
    journal.close()


def test_a_damaged_file_is_quarantined(tmp_path, caplog):
    path = tmp_path / "journal.db"
    path.write_bytes(b"no database" * 1000)
    journal = Journal(path)
    assert journal.find() == []
    journal.create("m", "a", 1)
    journal.close()
    assert (tmp_path / "journal.db.damaged").read_bytes().startswith(b"no database")
    assert "journal.db was damaged: file is not a database, quarantined as journal.db.damaged" in caplog.text


def test_a_file_of_a_newer_edged_is_left_alone(tmp_path):
    path = tmp_path / "journal.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="newer edged"):
        Journal(path)
    assert path.exists()


def test_a_folder_that_is_missing_is_a_state_error(tmp_path):
    with pytest.raises(StateError, match="cannot write the journal"):
        Journal(tmp_path / "missing" / "journal.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk_is_a_state_error_and_what_was_written_stays(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        journal = Journal(disk / "journal.db")
        first = claimed(journal)
        fill(disk / "filler")
        with pytest.raises(StateError, match="free space"):
            write_until_it_fails(journal)
        (disk / "filler").unlink()
        assert journal.get(first.id) == first
        assert journal.advance(first.id, State.VERIFIED).state is State.VERIFIED
        journal.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def write_until_it_fails(journal):
    for index in range(1000):
        journal.create("m", f"{index}" * 50, 1)


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


class JournalMachine(RuleBasedStateMachine):
    """Random lives of updates, with restarts of the daemon in between, against a dictionary."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "journal.db")
        self.journal = Journal(self.path)
        self.expected = {}
        self.attempts = {}
        self.holds = {}

    def teardown(self):
        self.journal.close()
        self.folder.cleanup()

    @rule(model=st.sampled_from("mn"), name=st.sampled_from("abc"))
    def drop(self, model, name):
        update = self.journal.create(model, name, 1)
        if update.id in self.expected:
            assert self.expected[update.id] in (State.DROPPED, State.SETTLED)
        self.expected[update.id] = State.DROPPED
        self.attempts.setdefault(update.id, 0)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), to=st.sampled_from(State))
    def move(self, data, to):
        update_id = data.draw(st.sampled_from(sorted(self.expected)))
        before = self.expected[update_id]
        if to in NEXT[before]:
            assert self.journal.advance(update_id, to).state is to
            self.expected[update_id] = to
            self.attempts[update_id] += to is State.CLAIMED
        else:
            with pytest.raises(IllegalTransition):
                self.journal.advance(update_id, to)

    @rule(model=st.sampled_from("mn"), pinned=st.booleans(), paused=st.booleans())
    def hold(self, model, pinned, paused):
        self.journal.put_hold(model, Hold(pinned, paused))
        self.holds[model] = Hold(pinned, paused, self.holds.get(model, Hold()).highest_version)

    @rule(model=st.sampled_from("mn"), version=st.integers(1, 5))
    def commit_version(self, model, version):
        self.journal.raise_version(model, version)
        hold = self.holds.get(model, Hold())
        self.holds[model] = replace(hold, highest_version=max(hold.highest_version or 0, version))

    @rule()
    def restart(self):
        self.journal.close()
        self.journal = Journal(self.path)
        for update in self.journal.open_updates():
            target = resume(update.state)
            assert self.journal.resume(update.id).state is target
            self.expected[update.id] = target
            self.attempts[update.id] += target is State.CLAIMED

    @invariant()
    def the_journal_knows(self):
        found = {update.id: update for update in self.journal.find(limit=1000)}
        assert {key: update.state for key, update in found.items()} == self.expected
        assert {key: update.attempt for key, update in found.items()} == self.attempts
        assert self.journal.holds() == self.holds
        assert {u.id for u in self.journal.open_updates()} == {i for i, s in self.expected.items() if s not in ENDS}


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def ended(journal, state=State.REJECTED, **fields):
    return journal.advance(claimed(journal, **fields).id, state)


def test_the_oldest_ended_updates_are_forgotten_with_their_events(journal):
    waiting = claimed(journal)
    old, *kept = (ended(journal) for _ in range(4))
    assert journal.forget(3, 0.0, ()) == 1
    assert journal.get(old.id) is None
    assert journal.events(old.id) == []
    assert [update.id for update in journal.find()] == [*(update.id for update in reversed(kept)), waiting.id]
    assert journal.events(kept[0].id)
    assert journal.forget(3, 0.0, ()) == 0
    assert claimed(journal).id > kept[-1].id  # numbers are not given twice


def test_expired_updates_are_forgotten_unless_they_are_open(journal):
    waiting, old = claimed(journal), ended(journal)
    new = ended(journal)
    assert journal.forget(100, old.updated_at + 0.5, ()) == 1
    assert [update.id for update in journal.find()] == [new.id, waiting.id]


def test_updates_of_existing_generations_stay(journal):
    kept, gone = (
        ended(journal, State.COMMITTED, generation=1, key="a"),
        ended(journal, State.COMMITTED, generation=2, key="b"),
    )
    assert journal.forget(0, 1e12, {("m", 1), ("n", 2)}) == 1
    assert journal.last_for_key("a") == kept
    assert journal.get(gone.id) is None


def test_work_that_did_not_begin_does_not_count_as_an_attempt(journal):
    update = claimed(journal)
    update = journal.advance(update.id, State.DEFERRED, code="window", reason="later", attempt=update.attempt - 1)
    assert update.attempt == 0
    assert journal.advance(update.id, State.CLAIMED).attempt == 1


def test_open_updates_of_the_same_file_share_its_claim(journal):
    first, second = (claimed(journal, name=name, sha256="ab") for name in ("a.pt", "b.pt"))
    assert journal.shares_claim(first)
    journal.advance(second.id, State.SUPERSEDED)
    assert not journal.shares_claim(first)
    assert journal.last_of_file("ab").id == second.id
    assert journal.last_of_file("cd") is None


def test_a_retry_is_an_update_of_its_own_with_the_same_file(journal):
    ended = claimed(journal, name="b.pt", sha256="ab", key="ab:1")
    ended = journal.advance(ended.id, State.REJECTED, code="gate", reason="too bad")
    again = journal.retry(ended, "ab:2")
    assert (again.model, again.file_name, again.file_bytes) == ("m", "b.pt", 10)
    assert (again.state, again.sha256, again.key, again.attempt) == (State.CLAIMED, "ab", "ab:2", 1)
    assert [event.state for event in journal.events(again.id)] == [State.DROPPED, State.SETTLED, State.CLAIMED]
    assert (journal.retry_of(again.id), journal.retry_of(ended.id)) == (ended.id, None)
    assert journal.get(ended.id) == ended


def test_what_fails_in_an_exclusive_block_is_undone(journal):
    ended = journal.advance(claimed(journal, sha256="ab").id, State.FAILED)

    def fill_the_disk():
        with journal.exclusive():
            journal.retry(ended, "ab:1")
            raise StateError("disk full")

    with pytest.raises(StateError, match="disk full"):
        fill_the_disk()
    assert journal.find() == [ended]
