"""The state folder, the journal and the drop folder damaged or replaced under a running daemon."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support import small_disk
from tests.support.daemon import edged, eventually, running, tracebacks
from tests.support.lost_folder import LOSSES, has_content
from tests.support.tasks import Task


def serves(client: httpx.Client, task: Task, generation: int = 1) -> bool:
    image = next(task.test.rglob("*.png")).read_bytes()
    answer = client.post("/v2/models/digits/infer", content=image, headers={"Content-Type": "image/png"})
    return answer.status_code == 200 and answer.json()["model_version"] == str(generation)


def problems(client: httpx.Client) -> list[str]:
    found: list[str] = client.get("/edged/v1/status").json()["state_problems"]
    return found


def stays(client: httpx.Client) -> bool:
    """Return whether it is told that a drop stays where it is."""
    unclaimed = client.get("/edged/v1/status").json()["unclaimed"]
    return any("drops stay where they are" in each["reason"] for each in unclaimed)


def up(client: httpx.Client) -> bool:
    return "\nedged_state_folder_up 1.0\n" in client.get("/metrics").text


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def drop(folder: Path, source: Path) -> Path:
    """Rename a file into place in a drop folder outside of the state folder."""
    hidden = folder / "digits" / f".{source.name}"
    shutil.copyfile(source, hidden)
    return hidden.rename(hidden.with_name(source.name))


TOLD = {
    "moved": "is gone",
    "replaced": "was replaced by another folder",
    "emptied": "lock is gone from",
    "read_only": "is read-only now",
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how == "replaced" else pytest.mark.slow) for how in LOSSES]
)
def test_a_state_folder_that_is_gone_takes_no_file_and_comes_back(
    how: str, task: Task, tmp_path: Path, outside: Path
) -> None:
    if how == "read_only" and (why := small_disk.missing()) is not None:
        pytest.skip(why)
    with running(tmp_path, task.calibration, drop_dir=str(outside)) as daemon, daemon.tcp() as client:
        drop(outside, task.first)
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"
        with LOSSES[how](daemon.state, tmp_path / "away"):
            waiting = drop(outside, task.second)
            told = eventually(lambda: problems(client), "it is told")
            assert TOLD[how] in told[0]
            assert told[0] in daemon.log.read_text()
            assert not up(client)
            assert serves(client, task)
            assert client.get("/v2/health/ready").status_code == 200
            eventually(lambda: stays(client), "the drop is listed")
            assert waiting.exists()
            assert daemon.state.exists() == (how != "moved")
            assert not has_content(daemon.state)

        assert daemon.update_of("second.pt")["state"] == "COMMITTED"
        assert problems(client) == []
        assert up(client)
        assert "can be used again" in daemon.log.read_text()
        assert "Traceback" not in daemon.log.read_text()
        assert daemon.stop() == 0


@pytest.mark.slow
def test_a_state_folder_that_is_deleted_costs_no_answer_and_no_file(task: Task, tmp_path: Path, outside: Path) -> None:
    with running(tmp_path, task.calibration, drop_dir=str(outside)) as daemon:
        with daemon.tcp() as client:
            drop(outside, task.first)
            assert daemon.update_of("first.pt")["state"] == "COMMITTED"
            eventually(lambda: deleted(daemon.state), "it is deleted")
            waiting = drop(outside, task.second)
            gone = f"state_dir {daemon.state} is gone"
            eventually(lambda: any(gone in told for told in problems(client)), "it is told")
            eventually(lambda: stays(client), "the drop is listed")
            assert gone in daemon.log.read_text()
            assert not up(client)
            assert serves(client, task)
            assert client.get("/v2/health/ready").status_code == 200
            assert waiting.exists()
            assert not daemon.state.exists()
            assert daemon.stop() == 0
        daemon.start()
        update = daemon.update_of("second.pt")
        assert (update["state"], update["generation"]) == ("COMMITTED", 1)
        with daemon.tcp() as client:
            assert serves(client, task)
        assert tracebacks(daemon.log.read_text()) == []


def deleted(folder: Path) -> bool:
    """Delete a folder as far as nobody writes into it meanwhile; return whether it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def test_an_update_that_is_under_way_waits_for_the_folder(task: Task, tmp_path: Path, outside: Path) -> None:
    with running(tmp_path, task.calibration, drop_dir=str(outside)) as daemon, daemon.tcp() as client:
        drop(outside, task.first)
        daemon.update_of("first.pt", "CLAIMED", "VERIFIED", "LOADED", "CALIBRATED", "QUANTIZED")
        daemon.state.rename(tmp_path / "away")
        deferred = eventually(
            lambda: next((u for u in client.get("/edged/v1/updates").json()["updates"] if u["code"] == "state"), None),
            "it is deferred",
        )
        assert (deferred["state"], "is gone" in deferred["reason"]) == ("DEFERRED", True)
        (tmp_path / "away").rename(daemon.state)
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"


@pytest.mark.parametrize(
    "how", ["overwritten", *(pytest.param(how, marks=pytest.mark.slow) for how in ("removed", "replaced", "cut"))]
)
def test_a_journal_that_is_lost_under_the_daemon_is_restored(how: str, task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon, daemon.tcp() as client:
        daemon.put_live(task.first)
        assert edged(daemon, "pin", "digits")[1]["pinned"]
        daemon.drop(task.second)
        eventually(lambda: daemon.status()["models"][0]["held"] == 1, "it is held")
        journal = daemon.state / "journal.db"
        if how in ("removed", "replaced"):
            journal.unlink()
        if how == "replaced":
            journal.write_bytes(b"another file" * 1000)
        if how in ("overwritten", "cut"):
            with journal.open("r+b") as file:
                file.truncate(0)
                file.write(b"no database" * (2000 if how == "overwritten" else 0))

        def restored() -> list[str]:
            answers = [
                client.get(path)
                for path in ("/edged/v1/status", "/edged/v1/updates", "/edged/v1/models/digits/history", "/")
            ]
            assert {answer.status_code for answer in answers} <= {200, 503}
            assert all(answer.json()["code"] == "state" for answer in answers if answer.status_code == 503)
            return answers[0].json()["state_problems"] if answers[0].status_code == 200 else []

        told = eventually(restored, "it is restored")
        assert told[0].startswith("journal.db was damaged: ")
        assert serves(client, task)
        log = daemon.log.read_text()
        assert told[0] in log
        assert "Traceback" not in log
        assert "journal.db was damaged: " in daemon.get("/").text
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.status()["state_problems"] == []
        model = daemon.status()["models"][0]
        assert (model["pinned"], model["generation"]) == (True, 1)
        eventually(lambda: daemon.status()["models"][0]["held"] == 1, "it is held still")
        assert edged(daemon, "unpin", "digits")[1]["pinned"] is False
        assert daemon.update_of("second.pt")["state"] == "COMMITTED"


def test_a_drop_folder_that_is_replaced_is_watched_anew(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)  # so that the folder is watched by now
        folder = daemon.state / "drop"
        folder.rename(tmp_path / "away")
        (folder / "digits").mkdir(parents=True)
        daemon.drop(task.second)
        assert daemon.update_of("second.pt")["state"] == "COMMITTED"
        eventually(lambda: "was replaced; watching it anew" in daemon.log.read_text(), "it is told")


def test_a_claimed_file_goes_back_when_the_journal_is_lost(task: Task, tmp_path: Path) -> None:
    """The model is pinned, so what was published before it would have gone live does not."""
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        daemon.drop(task.second)
        daemon.update_of("second.pt", "CLAIMED", "VERIFIED", "LOADED", "CALIBRATED", "QUANTIZED", "EVALUATED")
        assert edged(daemon, "pin", "digits")[1]["generation"] == 1
        daemon.kill()
        for path in daemon.state.glob("journal.db*"):
            path.unlink()
        daemon.start()
        eventually(lambda: daemon.status()["models"][0]["held"] == 1, "it is held")
        assert (daemon.state / "drop" / "digits" / "second.pt").exists()
        daemon.await_no_claims()
        assert (
            "journal.db was damaged: it is missing; restored: digits is pinned" in daemon.status()["state_problems"][0]
        )
        assert daemon.metric("edged_journal_last_restored_timestamp_seconds") > 0
        assert daemon.generation() == 1
        assert edged(daemon, "unpin", "digits")[0] == 0
        ended = daemon.update_of("second.pt")
        assert (ended["state"], ended["id"] > 1000) == ("COMMITTED", True)


def test_a_state_that_no_table_knows_is_shown_by_all(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        daemon.drop(task.first, "again.pt")
        daemon.update_of("again.pt")
        assert daemon.stop() == 0
        shutil.rmtree(daemon.state / "copies")  # or they would mend it
        with closing(sqlite3.connect(daemon.state / "journal.db")) as journal:
            journal.execute("UPDATE updates SET state = 'GARBAGE', report = 'no JSON' WHERE file_name = 'again.pt'")
            journal.execute("UPDATE events SET state = 'GARBAGE', detail = '{' WHERE update_id = 2")
            journal.commit()
        daemon.start()
        for command in (("history", "digits"), ("report", "2"), ("status",)):
            code, answer = edged(daemon, *command)
            assert code == 0
            assert command == ("status",) or "GARBAGE" in json.dumps(answer)
        for page in ("/", "/edged/v1/updates/2/report"):
            assert "GARBAGE" in daemon.get(page).text
        assert edged(daemon, "retry", "2")[0] == 4
        assert "Traceback" not in daemon.log.read_text()
