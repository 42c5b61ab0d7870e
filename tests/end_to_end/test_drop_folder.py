"""What people really put into a drop folder: whole runs, notes, files in the wrong place, uploads that pause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, edged, eventually, running
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    watch = {"settle_s": 0.2, "settle_max_s": 5, "rescan_s": 0.5}
    with running(tmp_path_factory.mktemp("drops"), task.calibration, watch=watch) as started:
        yield started


def unclaimed(daemon: Daemon) -> dict[str, str]:
    """The reason of each entry that stays in the drop folder, by its path."""
    return {entry["path"]: entry["reason"] for entry in daemon.status()["unclaimed"]}


def test_of_a_whole_run_best_pt_goes_live_and_the_rest_is_listed(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    run, drop = tmp_path / "exp3", daemon.state / "drop" / "digits"
    (run / "weights").mkdir(parents=True)
    shutil.copy(task.first, run / "weights" / "best.pt")
    shutil.copy(task.second, run / "weights" / "last.pt")
    for name in ("results.csv", "opt.yaml", "data.yaml", "events.out.tfevents.1"):
        (run / name).write_text("of a training")
    target = shutil.copytree(run, drop / ".exp3").rename(drop / "exp3")  # at once: a copy that pauses seems complete

    update = daemon.update_of("exp3/weights/best.pt")
    assert update["state"] == "COMMITTED"
    eventually(lambda: "drop/digits/exp3" in unclaimed(daemon), "the rest is listed")
    assert unclaimed(daemon)["drop/digits/exp3"].startswith("weights/best.pt of it was taken; the rest is left")
    eventually(lambda: daemon.metric('edged_drop_unclaimed{kind="folder"}') == 1, "it is counted")
    assert sorted(path.name for path in target.rglob("*.pt")) == ["last.pt"]

    assert daemon.stop() == 0
    daemon.start()
    eventually(lambda: "drop/digits/exp3" in unclaimed(daemon), "it is listed again")
    assert [update["file_name"] for update in daemon.updates()] == ["exp3/weights/best.pt"]  # and last.pt is not taken
    shutil.rmtree(target)
    eventually(lambda: unclaimed(daemon) == {}, "nothing is listed any more")


def test_what_is_no_checkpoint_stays_and_is_listed(daemon: Daemon, task: Task) -> None:
    drop = daemon.state / "drop"
    (drop / "digits" / "README.txt").write_text("how to use these weights")
    (drop / "digitz").mkdir()
    shutil.copy(task.first, drop / "digitz" / "best.pt")
    eventually(lambda: len(unclaimed(daemon)) == 2, "both are listed")
    assert set(unclaimed(daemon)) == {"drop/digits/README.txt", "drop/digitz"}
    eventually(lambda: daemon.metric('edged_drop_unclaimed{kind="file"}') == 1, "it is counted")
    assert daemon.log.read_text().count("README.txt stays in the drop folder") == 1
    _, answer = edged(daemon, "doctor")
    (check,) = (check for check in answer["checks"] if check["name"] == "drop folder")
    assert (check["level"], "digitz: no model of the config has this name" in check["detail"]) == ("warn", True)
    assert not any(update["file_name"] == "README.txt" for update in daemon.updates())
    shutil.rmtree(drop / "digitz")
    (drop / "digits" / "README.txt").unlink()


def test_an_upload_that_pauses_is_not_taken_before_its_end(daemon: Daemon, task: Task) -> None:
    data, path = task.second.read_bytes(), daemon.state / "drop" / "digits" / "slow.pt"
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        reason = "a process has it open for writing"
        eventually(lambda: reason in unclaimed(daemon).get("drop/digits/slow.pt", ""), "it is waited for")
        file.write(data[len(data) // 2 :])
    assert daemon.update_of("slow.pt")["state"] == "COMMITTED"
    assert unclaimed(daemon) == {}


def test_a_file_that_stays_cut_off_is_rejected_with_what_is_missing(daemon: Daemon, task: Task) -> None:
    data = task.second.read_bytes()
    cut = data[: len(data) // 2]
    (daemon.state / "drop" / "digits" / "cut.pt").write_bytes(cut)
    eventually(lambda: "cut off" in unclaimed(daemon).get("drop/digits/cut.pt", ""), "it is waited for")
    update = daemon.update_of("cut.pt")
    assert (update["state"], update["code"]) == ("REJECTED", "truncated")
    missing = f"its zip has no end: {len(cut)} bytes are there, its tensors alone need "
    assert update["reason"].startswith(f"it is cut off: {missing}")
    kept = daemon.state / "rejected" / update["sha256"]
    assert (kept / "file").read_bytes() == cut
    assert json.loads((kept / "reason.json").read_text())["code"] == "truncated"
    counted = 'edged_updates_total{model="digits",reason="truncated",result="rejected"}'
    eventually(lambda: daemon.metric(counted) == 1, "it is counted")
    assert not (daemon.state / "drop" / "digits" / "cut.pt").exists()


def test_an_upload_over_http_that_is_no_checkpoint_is_refused(daemon: Daemon) -> None:
    answer = daemon.post("/edged/v1/models/digits/drop?name=notes.txt", content=b"how to use these weights")
    assert answer.status_code == 422
    assert "notes.txt is no checkpoint, by its name and its first bytes" in answer.json()["error"]
    assert list((daemon.state / "drop" / "digits").iterdir()) == []


def test_a_file_that_finds_no_room_is_taken_once_there_is_some(daemon: Daemon, task: Task) -> None:
    claimed = daemon.state / "claimed"
    claimed.rmdir()
    claimed.write_text("in the way, as a full disk would be")
    shutil.copy(task.first, daemon.state / "drop" / "digits" / "no_room.pt")
    update = eventually(
        lambda: next((u for u in daemon.updates() if u["file_name"] == "no_room.pt" and u["code"] == "state"), None),
        "the update says why it waits",
    )
    assert (update["state"], "cannot write" in update["reason"]) == ("SETTLED", True)
    claimed.unlink()
    ended = daemon.update_of("no_room.pt")
    assert (ended["id"], ended["state"], ended["code"]) == (update["id"], "COMMITTED", None)
