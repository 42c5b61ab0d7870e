"""The files of an update: their folder, and reading and writing them."""

import asyncio
import json

import pytest

from edged.errors import UsageError
from service.journal.states import State
from service.reporting.data import COURSE, PAGE, ResourceTrace, folder_of, gather, is_of, without_pictures
from service.reporting.files import Reports, keep_evidence, keep_resource_trace
from service.storage.paths import Paths
from service.storage.state_folder import StateFolder
from service.system.disk_thread import Disk
from service.worker.job import PREDICTIONS
from tests.support.reports import data_of

FORWARD = [State.SETTLED, State.CLAIMED, State.VERIFIED, State.LOADED, State.CALIBRATED, State.QUANTIZED,
           State.EVALUATED]  # fmt: skip


@pytest.fixture
def paths(tmp_path):
    made = Paths(tmp_path / "state")
    made.make()
    return made


@pytest.fixture
def state(paths):
    opened = StateFolder.open(paths.root)
    yield opened
    opened.journal.close()


def write_report(state, update_id):
    disk = Disk()
    asyncio.run(Reports(state, disk).write(update_id))
    disk.close()


def update_of(journal, *states, **fields):
    update = journal.create("m", "a.pt", 5)
    for state in states:
        update = journal.advance(update.id, state, **fields)
    return update


def published(state, update, **files):
    """Publish an update with these files in addition to its manifest."""
    staged = state.staged(update)
    staged.mkdir(parents=True, exist_ok=True)
    (staged / "manifest.json").write_text("{}")
    for name, text in files.items():
        (staged / f"{name}.json").write_text(text)
    generation = state.store.publish("m", staged)
    return state.journal.advance(update.id, State.PUBLISHED, generation=generation)


def look(state, update):
    return gather(state.journal, state.store, state.paths, update.id)


def test_everything_about_a_published_update_is_gathered(state):
    update = update_of(state.journal, *FORWARD, stages={"settle": 1.0, "verify": 2.0})
    keep_resource_trace(state.staged(update), ResourceTrace(update.id, 5.0, [(0.2, 7)], None))
    update = published(state, update, report='{"layers": []}', predictions='{"images": []}')
    found = look(state, update)
    assert found["report"] == {"layers": []}
    assert found["predictions"] == {"images": []}
    measured = {"memory": [[0.2, 7]], "memory_max": None, "held_back_s": 0.0}
    assert found["course"] == {"update": update.id, "started_at": 5.0, **measured}
    assert (found["update"]["id"], found["update"]["state"], found["path"]) == (update.id, "PUBLISHED", None)
    assert [event["state"] for event in found["update"]["events"]][:2] == ["DROPPED", "SETTLED"]
    assert {span["stage"] for span in found["timeline"]} == {"settle", "verify"}
    assert json.loads(json.dumps(found)) == found


def test_an_update_that_was_not_claimed_has_no_files(state):
    found = look(state, update_of(state.journal))
    assert [found[key] for key in ("report", "manifest", "predictions", "course", "path")] == [None] * 5
    with pytest.raises(UsageError, match="no update 99"):
        gather(state.journal, state.store, state.paths, 99)


@pytest.mark.parametrize("contents", ["", "{", "[1]", "\ufffd" * 5, "[" * 100_000])
def test_a_damaged_file_is_left_out(state, contents):
    update = update_of(state.journal, *FORWARD)
    update = published(state, update, report=contents, predictions='{"images": []}')
    found = look(state, update)
    assert (found["report"], found["predictions"]) == (None, {"images": []})


def test_a_rejected_file_keeps_the_evidence_of_its_worker(state):
    update = update_of(state.journal, *FORWARD, sha256="ab")
    staged, folder = state.staged(update), state.paths.rejected / "ab"
    folder.mkdir()
    (folder / "report.json").write_text('{"of": "an earlier update"}')
    keep_evidence(staged, folder)  # no worker ran
    assert (folder / "report.json").exists()
    keep_resource_trace(staged, ResourceTrace(update.id, 5.0, [], None))
    assert folder_of(update, state.store, state.paths) == staged
    (staged / PREDICTIONS).write_text("{}")
    keep_evidence(staged, folder)
    assert {path.name for path in folder.iterdir()} == {COURSE, PREDICTIONS}


def test_the_page_is_written_next_to_its_data(state):
    update = update_of(state.journal, *FORWARD)
    keep_resource_trace(state.staged(update), ResourceTrace(update.id, 5.0, [(0.2, 7)], None))
    update = published(state, update, report=json.dumps(data_of()["report"]))
    write_report(state, update.id)
    page = state.store.path("m", update.generation) / PAGE
    assert "PUBLISHED" in page.read_text()
    assert look(state, update)["path"] == str(page)
    # The same file dropped again goes to the same generation, whose page stays that of the update that made it.
    again = update_of(state.journal, State.SETTLED, State.CLAIMED)
    again = state.journal.advance(again.id, State.COMMITTED, generation=update.generation)
    assert not is_of(again, page.parent)
    before = page.read_text()
    write_report(state, again.id)
    assert page.read_text() == before
    assert look(state, again)["course"]["update"] == update.id


def test_a_part_of_a_report_whose_data_is_damaged_is_left_out(state, caplog):
    update = update_of(state.journal, *FORWARD)
    update = published(state, update, report='{"layers": [{"name": "without a loss"}], "totals": {"device": "Orin"}}')
    write_report(state, update.id)
    assert "a report leaves out the layers, whose data is damaged: KeyError('relative_loss')" in caplog.text
    page = (state.store.path("m", update.generation) / "report.html").read_text()
    assert "A part cannot be shown: its file is damaged" in page
    assert "Orin" in page


def test_a_report_that_cannot_be_written_is_only_logged(state, caplog):
    update = published(state, update_of(state.journal, *FORWARD), report="{}")
    (state.store.path("m", update.generation) / "report.html").mkdir()
    write_report(state, update.id)
    assert "cannot write report.html: " in caplog.text
    write_report(state, 99)
    in_the_way = state.paths.root / "plain"
    in_the_way.touch()
    keep_resource_trace(in_the_way / "staged", ResourceTrace(1, 5.0, [], None))
    assert "cannot write the resource trace" in caplog.text


def test_pictures_can_be_left_out():
    data = data_of()
    bare = without_pictures(data)
    assert [image["picture"] for image in bare["predictions"]["images"]] == [None]
    assert data["predictions"]["images"][0]["picture"] is not None
    assert bare["predictions"]["images"][0]["fp32"] == data["predictions"]["images"][0]["fp32"]
    assert without_pictures({"predictions": None}) == {"predictions": None}
