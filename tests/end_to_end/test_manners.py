"""Updates that wait for a better time, and go on by themselves when it comes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from service.config.windows import parse_windows
from tests.support.daemon import Daemon, eventually, running, workers
from tests.support.tasks import Task


def closed_now() -> str:
    """A window that opens in about two hours."""
    opens = time.localtime(time.time() + 7200)
    closes = time.localtime(time.time() + 10800)
    return f"{opens.tm_hour:02}:{opens.tm_min:02}-{closes.tm_hour:02}:{closes.tm_min:02}"


def deferred(daemon: Daemon, name: str, code: str) -> dict[str, Any]:
    update = daemon.update_of(name, "DEFERRED")
    eventually(lambda: daemon.update_of(name, "DEFERRED")["retry_at"], "it says when it looks again")
    assert update["code"] == code
    return daemon.update_of(name, "DEFERRED")


def test_an_update_waits_for_its_window_and_a_changed_config_ends_the_wait(task: Task, tmp_path: Path) -> None:
    window = str(*parse_windows([closed_now()]))
    with running(tmp_path, task.calibration, worker={"window": window}) as daemon:
        daemon.drop(task.first)
        update = deferred(daemon, "first.pt", "window")
        assert (update["reason"], update["attempt"]) == (f"worker.window is {window}", 0)
        assert daemon.metric('edged_updates_deferred_total{model="digits",reason="window"}') == 1
        daemon.kill()  # it goes on waiting after a restart
        daemon.start()
        deferred(daemon, "first.pt", "window")
        del daemon.config["worker"]["window"]
        daemon.reload()
        update = daemon.update_of("first.pt")
        assert (update["state"], update["attempt"], update["code"]) == ("COMMITTED", 1, None)


def test_looking_again_and_again_uses_up_no_try_and_writes_nothing(task: Task, tmp_path: Path) -> None:
    worker = {"min_free_memory": "1000TiB", "recheck_s": 0.01, "tries": 2}
    with running(tmp_path, task.calibration, worker=worker) as daemon:
        daemon.drop(task.first)
        update = deferred(daemon, "first.pt", "free_memory")
        assert "worker.min_free_memory is 1000.0 TiB" in update["reason"]
        first = update["retry_at"]
        eventually(lambda: daemon.update_of("first.pt", "DEFERRED")["retry_at"] > first, "it looks again")
        looks: set[float] = set()
        eventually(lambda: looks.add(daemon.update_of("first.pt", "DEFERRED")["retry_at"]) or len(looks) > 3, "often")
        events = daemon.get(f"/edged/v1/updates/{update['id']}").json()["events"]
        assert [event["state"] for event in events] == ["DROPPED", "SETTLED", "CLAIMED", "DEFERRED"]


def test_what_does_not_fit_waits_and_names_what_it_takes(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration, storage={"max_bytes": "100kB"}) as daemon:
        daemon.drop(task.first)
        update = deferred(daemon, "first.pt", "disk")
        assert "storage.max_bytes is 97.7 KiB" in update["reason"]
        assert f"update {update['id']} takes about" in update["reason"]
        waits = 'edged_updates_postponed{model="digits",reason="disk"}'
        assert daemon.metric(waits) == 1
        daemon.config["storage"] = {"max_bytes": "3MB"}
        daemon.reload()
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"
        assert daemon.metric(waits) == 0


@pytest.mark.slow  # four updates, one after another
def test_the_higher_priority_goes_first(task: Task, tmp_path: Path) -> None:
    def model(name: str, priority: int) -> dict[str, Any]:
        return {
            "name": name,
            "calibration": {"dir": str(task.calibration)},
            "input": {"size": 8, "resize": 8},
            "priority": priority,
        }

    waiting = ("low", "usual", "high")
    models = [model("busy", 0), model("low", -1), model("usual", 0), model("high", 5)]
    with running(tmp_path, task.calibration, models=models) as daemon:
        daemon.drop(task.first, "busy.pt", "busy")
        (worker,) = eventually(lambda: workers(daemon), "its worker")
        worker.suspend()
        for name in waiting:
            daemon.drop(task.first, f"{name}.pt", name)
            daemon.await_queued(f"{name}.pt")
        worker.resume()
        updates = [daemon.update_of(f"{name}.pt") for name in waiting]
        assert [update["state"] for update in updates] == ["COMMITTED"] * 3
        began = {}
        for update in updates:
            events = daemon.get(f"/edged/v1/updates/{update['id']}").json()["events"]
            began[update["model"]] = next(event["at"] for event in events if event["state"] == "VERIFIED")
        assert sorted(began, key=began.__getitem__) == ["high", "usual", "low"]


def test_the_journal_does_not_grow_for_ever(task: Task, tmp_path: Path) -> None:
    watch = {"settle_s": 0.1, "rescan_s": 1, "max_bytes": 1000}
    with running(tmp_path, task.calibration, watch=watch, history={"max_updates": 10}) as daemon:
        bad = tmp_path / "bad.pt"
        bad.write_bytes(b"x" * 2000)
        for index in range(25):
            daemon.drop(bad, f"{index}.pt")
        eventually(lambda: daemon.updates() and daemon.updates()[0]["id"] == 25, "all are refused")
        eventually(lambda: len(daemon.updates()) == 10, "the oldest are forgotten")
        assert {update["state"] for update in daemon.updates()} == {"REJECTED"}
        counted = 'edged_updates_total{model="digits",reason="too_large",result="rejected"}'
        eventually(lambda: daemon.metric(counted) == 25, "all are counted")
