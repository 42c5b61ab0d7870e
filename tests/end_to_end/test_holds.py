"""Pinned and paused models, and the removal of what nobody needs, against the real daemon and its commands."""

from __future__ import annotations

from pathlib import Path

from tests.support.daemon import Daemon, edged, eventually, running, workers
from tests.support.tasks import Task


def held(daemon: Daemon) -> int:
    return int(daemon.status()["models"][0]["held"])


def test_a_paused_model_leaves_files_where_they_are(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        assert edged(daemon, "pause", "digits")[1] == {
            "model": "digits",
            "generation": None,
            "pinned": False,
            "paused": True,
            "highest_version": None,
        }
        code, update = edged(daemon, "submit", task.first, "--model", "digits", "--wait")
        assert (code, update["state"], update["code"]) == (75, "DROPPED", "paused")
        assert "`edged resume digits` lets it go on" in update["reason"]
        daemon.drop(task.second)
        eventually(lambda: held(daemon) == 2, "both files wait")
        assert daemon.metric('edged_drops_held{model="digits"}') == 2
        assert daemon.metric('edged_model_paused{model="digits"}') == 1

        assert daemon.stop() == 0
        daemon.start()
        eventually(lambda: held(daemon) == 2, "both files wait again")
        assert {path.name for path in (daemon.state / "drop" / "digits").iterdir()} == {"first.pt", "second.pt"}
        (daemon.state / "drop" / "digits" / "second.pt").unlink()

        assert edged(daemon, "resume", "digits")[1]["paused"] is False
        committed = daemon.update_of("first.pt")
        assert (committed["id"], committed["state"], committed["code"]) == (update["id"], "COMMITTED", None)
        assert daemon.update_of("second.pt")["code"] == "gone"
        assert held(daemon) == 0
        eventually(lambda: daemon.metric('edged_drops_held{model="digits"}') == 0, "the metric says so, too")


def test_a_pinned_model_keeps_its_generation(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        code, answer = edged(daemon, "pin", "digits")
        assert (code, "no generation to be pinned to" in answer["error"]) == (4, True)
        daemon.put_live(task.first)

        # What was taken before waits just before it would go live; `current` stays.
        daemon.drop(task.second)
        (worker,) = eventually(lambda: workers(daemon), "its worker")
        worker.suspend()
        assert edged(daemon, "pin", "digits")[1]["generation"] == 1
        worker.resume()
        waiting = eventually(lambda: next((u for u in daemon.updates() if u["code"] == "pinned"), None), "it waits")
        assert waiting["state"] == "PUBLISHED"
        assert daemon.metric('edged_model_pinned{model="digits"}') == 1
        code, answer = edged(daemon, "rollback", "digits")
        assert (code, answer["code"]) == (4, "pinned")

        assert daemon.stop() == 0
        daemon.start()
        assert daemon.generation() == 1
        eventually(lambda: daemon.updates()[0]["code"] == "pinned", "it waits again")
        daemon.drop(task.first, "later.pt")
        eventually(lambda: held(daemon) == 1, "the drop stays")

        assert edged(daemon, "unpin", "digits")[1]["pinned"] is False
        assert daemon.update_of("second.pt")["state"] == "COMMITTED"
        assert daemon.update_of("later.pt")["generation"] == 1


def test_gc_removes_what_nobody_needs(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        unused = daemon.state / "calib" / "gone" / "0123456789abcdef"
        unused.mkdir(parents=True)
        (unused / "images.u8").write_bytes(bytes(1000))
        (daemon.state / "staging" / "77").mkdir()
        expected = [
            {"kind": "staging", "model": "", "path": "staging/77", "bytes": 0},
            {"kind": "calibration", "model": "gone", "path": "calib/gone/0123456789abcdef", "bytes": 1000},
        ]
        code, answer = edged(daemon, "gc", "--dry-run")
        assert (code, answer) == (0, {"dry_run": True, "removed": expected, "bytes": 1000, "skipped": None})
        assert unused.exists()
        code, answer = edged(daemon, "gc")
        assert (code, answer["removed"]) == (0, expected)
        assert not unused.exists()
        assert edged(daemon, "gc")[1]["removed"] == []
        assert daemon.metric("edged_garbage_removed_bytes_total") == 1000
        daemon.put_live(task.first, "again.pt")  # its calibration images are still there
        assert daemon.get("/edged/v1/status").json()["ready"]
